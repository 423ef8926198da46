"""README and the first page: results that are kept, their table, a picture."""
