"""Save and load shared sublayers: what lies in a folder, and how other tools read it."""
