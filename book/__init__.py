"""The book: chapters in MyST Markdown, and the engine that runs them."""
