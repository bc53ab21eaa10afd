"""Building and checking the book: notebooks from their sources, figures, and showing library source."""
