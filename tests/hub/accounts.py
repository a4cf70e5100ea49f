"""Who has an account on the tests' Hub."""

from .server import Account

# Alphanumeric like a real one, so that what looks for tokens finds it.
TOKEN = "hf_TestWriterToken0123456789"
ACCOUNTS = {
    TOKEN: Account("alice", orgs=("acme",)),
    "hf_TestReaderToken0123456789": Account("bob", role="read", orgs=("acme",)),
    "hf_TestOtherToken0123456789": Account("carol"),
}
