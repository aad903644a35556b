"""What is classified: a text or a pair of texts."""

Text = str | tuple[str, str]
TOKENIZER_CONFIG = "tokenizer_config.json"  # beside a tokenizer.json: settings that it does not have
