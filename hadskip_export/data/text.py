"""What is classified: a text or a pair of texts."""

Text = str | tuple[str, str]
