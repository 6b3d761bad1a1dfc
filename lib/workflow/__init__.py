"""DVC's side of the study; what is imported first of it keeps a stage's start short."""

import sys

# nbformat's jsonschema would build grammars for checks of URLs, which no notebook has: two seconds
# of every stage. Where the package cannot be imported, it does without.
sys.modules.setdefault("rfc3987_syntax", None)
