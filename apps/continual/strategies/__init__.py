"""One file a strategy; `apps.continual.strategy.discover` finds them by file name."""
