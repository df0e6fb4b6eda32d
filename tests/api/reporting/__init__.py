"""Of api/analyzing/, api/pages/ and api/reporting/."""
