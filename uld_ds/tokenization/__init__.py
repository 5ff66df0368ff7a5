"""One tokenizer: loading and training it, the bytes of its tokens, their spans in a text, its vocabulary."""
