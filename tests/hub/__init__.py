"""The parts of the Hub-compatible test server: what it stores (`store`), what it breaks on purpose (`faults`)."""
