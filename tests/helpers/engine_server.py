"""A server of our own on loopback that scores prompts as inference engines do, with faults where a test wants some.

What is behind it is a real transformers model, one text in a forward. Replies of vLLM are of the form that its server
gives (0.32, seen); those of SGLang are of the form that its source says (0.5, read).
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Fault = Callable[[int], str | None]
TRANSIENT = ("429", "503", "500", "reset", "cut", "torn", "delay")
"""Faults that pass."""


TOKEN = "a-token-that-nobody-tells"
"""Of the server that whole runs ask."""


class EngineServer:
    """A server that is up while its context is entered; it can be taken down and brought back on the same port.

    Args:
        folder: the model and its tokenizer.
        api: ``vllm`` or ``sglang``.
        token: bearer token that it wants.
        fault: of the n-th scoring request, from 0, the name of what is to go wrong.
        touched: what is done to logits before they are told: ``logits`` tells these themselves, ``temperature`` divides
            by the request's.
        tokenizer: folder of another tokenizer than the model's.
        **facts: what ``/v1/models`` and the like tell: ``name``, ``owned_by``, ``max_model_len``, ``max_logprobs``,
            ``version``.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        api: str = "vllm",
        token: str | None = None,
        fault: Fault = lambda _number: None,
        touched: str = "",
        tokenizer: str | Path | None = None,
        **facts: Any,
    ) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or folder)
        self.api, self.token, self.fault, self.touched = api, token, fault, touched
        self.facts = {
            "names": [facts.pop("name", "teacher")],
            "owned_by": api,
            "max_model_len": 512,
            "max_logprobs": 64,
            "version": "0.0.1",
        } | facts
        self.scored: list[list[int]] = []
        """Token ids of every text that was scored, in order of arrival."""
        self.faults: list[str] = []
        self.retry_after = "0"
        self.is_too_much: Callable[[list[int]], bool] = lambda _ids: False
        self.refuses: Callable[[list[int]], bool] = lambda _ids: False
        self.most_requests = self.most_tokens = 0
        """The most that were under way at once."""
        self.connections: set[Any] = set()
        """Connections that are open."""
        self.num_connections = 0
        self._lock = threading.Lock()
        self._forward = threading.Lock()
        self._under_way: list[int] = []
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> EngineServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        outer = self

        class Handler(_Handler):
            server_of = outer

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Take it down, with all connections."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        with self._lock:
            sockets, self.connections = self.connections, set()
        for connection in sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def under_way(self, tokens: int) -> Iterator[int]:
        with self._lock:
            self._under_way.append(tokens)
            self.most_requests = max(self.most_requests, len(self._under_way))
            self.most_tokens = max(self.most_tokens, sum(self._under_way))
        try:
            yield tokens
        finally:
            with self._lock:
                self._under_way.remove(tokens)

    def arrived(self, ids: list[int]) -> str | None:
        """Count a text, and choose what goes wrong with it."""
        with self._lock:
            fault = self.fault(len(self.scored))
            self.scored.append(ids)
            if fault:
                self.faults.append(fault)
        return fault

    def log_probs(self, ids: list[int], temperature: float) -> np.ndarray:
        """[len(ids), V] of each next token."""
        with self._forward, torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0].float()
        if self.touched == "logits":
            return logits.numpy()
        if self.touched == "temperature" and temperature:
            logits = logits / temperature
        return logits.log_softmax(1).numpy()


class _Handler(BaseHTTPRequestHandler):
    server_of: EngineServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        self.server_of.connections.add(self.connection)
        self.server_of.num_connections += 1
        connection = self.connection
        try:
            super().handle()
        except OSError:
            pass  # reset by either side, which is what some faults are
        except ValueError as error:
            # So Python says that a file of a connection was closed in between; anything else is a fault of this server.
            if "closed file" not in str(error):
                raise
        finally:
            self.server_of.connections.discard(connection)

    def do_GET(self) -> None:
        facts = self.server_of.facts
        if not self._is_let_in():
            return
        if self.path == "/v1/models":
            entry = {"owned_by": facts["owned_by"], "max_model_len": facts["max_model_len"]}
            self._send(200, {"object": "list", "data": [{"id": name, **entry} for name in facts["names"]]})
        elif self.path == "/version" and self.server_of.api == "vllm":
            self._send(200, {"version": facts["version"]})
        elif self.path == "/server_info" and self.server_of.api == "sglang":
            self._send(200, {"version": facts["version"], "dtype": "float32", "quantization": None})
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_let_in():
            return
        if self.path == "/tokenize":
            ids = self.server_of.tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
            self._send(200, {"tokens": ids, "count": len(ids)})
        elif self.path == {"vllm": "/v1/completions", "sglang": "/generate"}[self.server_of.api]:
            self._score(body)
        else:
            self._send(404, {"detail": "Not Found"})

    def _is_let_in(self) -> bool:
        wanted = self.server_of.token
        if wanted is None or self.headers["Authorization"] == f"Bearer {wanted}":
            return True
        self._send(401, {"error": "Unauthorized"})
        return False

    def _score(self, body: dict[str, Any]) -> None:
        ids = body["prompt"] if "prompt" in body else body["input_ids"]
        fault = self.server_of.arrived(ids)
        with self.server_of.under_way(len(ids)):
            if fault == "delay":
                time.sleep(0.3)
            if self.server_of.is_too_much(ids):
                fault = "429"
            if fault in ("429", "503", "500"):
                headers = {"Retry-After": self.server_of.retry_after}
                self._send(int(fault), {"error": {"message": f"try again ({fault})"}}, headers)
                return
            if fault and fault.startswith("to "):
                self._send(307, {"detail": "elsewhere"}, {"Location": fault.removeprefix("to ")})
                return
            if fault == "400" or self.server_of.refuses(ids):
                self._send(400, {"error": {"message": "the engine does not like this one"}})
                return
            if fault == "reset":
                _reset(self.connection)
                self.close_connection = True
                return
            reply = self._vllm(body, ids) if self.server_of.api == "vllm" else self._sglang(body, ids)
            if reply is not None:
                self._send(200, _spoiled(reply, fault, self.server_of.api), fault=fault)

    def _vllm(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any] | None:
        assert body["max_tokens"] == 1 and body["return_token_ids"] is True
        k, most = body["prompt_logprobs"], self.server_of.facts["max_logprobs"]
        if body["model"] not in self.server_of.facts["names"]:
            self._send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            return None
        if k > most:
            words = f"Requested prompt logprobs of {k}, which is greater than max allowed: {most}"
            self._send(400, {"error": {"message": f"{words} (parameter=prompt_logprobs, value={k})"}})
            return None
        vocab = self.server_of.model.config.vocab_size
        if max(ids) >= vocab:
            self._send(400, {"error": {"message": f"Token id {max(ids)} is out of vocabulary"}})
            return None
        told = self.server_of.log_probs(ids, body["temperature"])
        entries: list[Any] = [None]
        for place in range(1, len(ids)):
            row = told[place - 1]
            likeliest = np.argsort(-row, kind="stable")[:k].tolist()
            # The actual one comes first, whatever its rank.
            keys = [ids[place], *(token for token in likeliest if token != ids[place])]
            ranks = {token: rank for rank, token in enumerate(likeliest, 1)}
            entries.append(
                {
                    str(token): {
                        "logprob": max(float(row[token]), -9999.0),
                        "rank": ranks.get(token, k + 1),
                        "decoded_token": "x",
                    }
                    for token in keys
                }
            )
        choice = {"index": 0, "text": "x", "prompt_logprobs": entries, "prompt_token_ids": ids}
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}

    def _sglang(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        assert body["logprob_start_len"] == 0 and body["return_flat_raw_top_logprobs_b64"]
        k = body["top_logprobs_num"]
        told = self.server_of.log_probs(ids, body["sampling_params"]["temperature"])[:-1]
        likeliest = np.argsort(-told, axis=1, kind="stable")[:, :k].astype("<i4")
        values = np.take_along_axis(told, likeliest, 1).astype("<f4")
        actual = [None, *(float(row[token]) for row, token in zip(told, ids[1:], strict=True))]
        meta = {
            "prompt_tokens": len(ids),
            "input_token_logprobs": [[value, token, None] for value, token in zip(actual, ids, strict=True)],
            "input_top_logprobs_val_flat_b64": base64.b64encode(values.tobytes()).decode(),
            "input_top_logprobs_idx_flat_b64": base64.b64encode(likeliest.tobytes()).decode(),
            "input_top_logprobs_val_flat_b64_dtype": "float32",
            "input_top_logprobs_idx_flat_b64_dtype": "int32",
            "input_top_logprobs_shape": list(values.shape),
            "input_top_logprobs_null_prefix": 1,
        }
        return {"text": "x", "output_ids": [1], "meta_info": meta}

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None, *, fault: str | None = None) -> None:
        data = json.dumps(body).encode()
        if fault == "cut":
            data = data[: len(data) // 2]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "torn" else data)
        if fault == "torn":
            self.wfile.flush()
            self.close_connection = True


def _spoiled(reply: dict[str, Any], fault: str | None, api: str) -> dict[str, Any]:
    """A reply with something wrong in it."""
    if api == "sglang":
        meta, actual = reply["meta_info"], reply["meta_info"]["input_token_logprobs"]
        if fault == "ids":
            actual[2][1] += 1
        elif fault == "short":
            actual.pop()
        elif fault == "nan":
            values = np.frombuffer(base64.b64decode(meta["input_top_logprobs_val_flat_b64"]), "<f4").copy()
            values[-1] = np.nan
            meta["input_top_logprobs_val_flat_b64"] = base64.b64encode(values.tobytes()).decode()
        elif fault == "rows":
            key = "input_top_logprobs_val_flat_b64"
            meta[key] = base64.b64encode(base64.b64decode(meta[key])[:-4]).decode()
        return reply
    (choice,) = reply["choices"]
    entries = choice["prompt_logprobs"]
    if fault == "ids":
        choice["prompt_token_ids"] = [*choice["prompt_token_ids"][:-1], 0]
    elif fault == "short":
        entries.pop()
    elif fault == "nan":
        next(iter(entries[-1].values()))["logprob"] = float("nan")
    elif fault == "keys":
        entries[-1] = {str(int(key) + 1): value for key, value in entries[-1].items()}
    elif fault == "rows":
        entries[-1] = dict(list(entries[-1].items())[:3])
    elif fault == "impossible":
        next(iter(entries[-1].values()))["logprob"] = -9999.0
    elif fault == "above":
        next(iter(entries[-1].values()))["logprob"] = 0.5
    elif fault == "dropped":
        del choice["prompt_logprobs"]
    return reply


def _reset(connection: socket.socket) -> None:
    """Close a connection so that the other side sees it reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())
