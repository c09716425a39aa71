"""The SQLite workshop and plain files: knows neither log nor client nor receiver."""
