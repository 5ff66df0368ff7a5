#!/usr/bin/env bash
# transformers 5 makes of one and the same SentencePiece file tokenizers with other ids than the file's own, depending on
# the small files beside it: without the space before the text, or as BPE though it is a Unigram model.
#
# Guess: a tokenizer.model holds its kind (BPE, Unigram), its normalization and the space before a text; AutoTokenizer
# converts all of that, and a folder with it alone, or with the tokenizer_class that most such checkpoints name, gives
# the ids that the sentencepiece library gives (but for texts that begin with spaces).
#
# Seen with transformers 5.23.0, tokenizers 0.23.3 and sentencepiece 0.2.3, files trained here as Llama's was (BPE with
# byte fallback, no normalization, a space before the text) and the same as Unigram; of four sentences as many have the
# library's ids as the table says. model_type llama without a tokenizer_config.json, and model_type mistral with
# LlamaTokenizer named, lose the space before the text: every text begins with other tokens than the model has learned.
# A Unigram file under LlamaTokenizer is read as BPE, and nearly every word is cut elsewhere. All load, encode and decode
# back to the text; nothing is said of it.
set -euo pipefail
EXPECTED='bpe      llama    nothing named    BPE      0 of 4
bpe      llama    LlamaTokenizer   BPE      4 of 4
bpe      mistral  LlamaTokenizer   BPE      0 of 4
unigram  llama    nothing named    Unigram  0 of 4
unigram  llama    LlamaTokenizer   BPE      0 of 4
unigram  mistral  LlamaTokenizer   Unigram  0 of 4'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
found=$(cd "$folder" && "$folder/env/bin/python" - 2>/dev/null <<'PYTHON'
import json
import random
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer

random.seed(0)
words = "the a of to and in is was for on that with as at by from it be are this which or an were not have has had their"
words = [*words.split(), *"river mountain teacher student language window morning question answer number little".split()]
text = [" ".join(random.choices(words, k=12)).capitalize() + "." for _ in range(2000)]
asked = ["The river was not a mountain.", "This is their question", "at the window", "Which number is the answer?"]
for kind in ("bpe", "unigram"):
    for model_type, named in (("llama", None), ("llama", "LlamaTokenizer"), ("mistral", "LlamaTokenizer")):
        place = Path(kind, model_type, named or "none")
        place.mkdir(parents=True)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_prefix=str(place / "tokenizer"), vocab_size=420, model_type=kind,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1,
            hard_vocab_limit=False, minloglevel=2,
        )
        (place / "config.json").write_text(json.dumps({"model_type": model_type}))
        if named:
            (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
        library = sentencepiece.SentencePieceProcessor(str(place / "tokenizer.model"))
        made = AutoTokenizer.from_pretrained(place)
        ids = [made.encode(sentence, add_special_tokens=False) for sentence in asked]
        assert [made.decode(one).strip() for one in ids] == asked
        same = sum(one == library.encode(sentence) for one, sentence in zip(ids, asked))
        model = type(made.backend_tokenizer.model).__name__
        print(f"{kind:<8} {model_type:<8} {named or 'nothing named':<16} {model:<8} {same} of {len(asked)}")
        print("  ", *made.convert_ids_to_tokens(ids[0]))
        print("  ", *library.encode(asked[0], out_type=str), " (the library)")
PYTHON
)
echo "$found"
[ "$(echo "$found" | grep -v '^  ')" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
