"""Pictures in files and in arrays; no network is known here."""
