"""The report of a model: one self-contained HTML file, and the table of its variants, both made of evidence alone."""
