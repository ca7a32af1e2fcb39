"""Why many epistemic indices are cheap."""
