"""What is swept: one module a method, each with a ``SPACE``. A new method's sweep is one file here."""
