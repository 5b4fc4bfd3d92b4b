"""The verifier of a password is the one that PostgreSQL itself would store."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter import scram


def test_a_verifier_accepts_the_proof_of_rfc_7677() -> None:
    """The stored key checks the client's proof, and the server key signs, as in the example exchange of RFC 7677."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    exchange = (
        b"n=user,r=rOprNGfwEbeRWgbNEkqO,"
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,"
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    signature = base64.b64decode("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")

    scheme, parameters, keys = scram.encode("pencil", salt).split("$")
    stored_key, server_key = (base64.b64decode(key) for key in keys.split(":"))

    assert (scheme, parameters) == ("SCRAM-SHA-256", "4096:W22ZaJ0SNY7soEsUEjb6gQ==")
    client_signature = hmac.digest(stored_key, exchange, "sha256")
    client_key = bytes(a ^ b for a, b in zip(proof, client_signature, strict=True))
    assert hashlib.sha256(client_key).digest() == stored_key
    assert hmac.digest(server_key, exchange, "sha256") == signature


def test_a_verifier_is_the_same_each_time_and_differs_by_role_and_password() -> None:
    """A run that changes nothing makes the same verifier; no two roles or passwords share a salt."""
    verifier = scram.scram_verifier("a" * 32, "app")
    assert verifier == scram.scram_verifier("a" * 32, "app")
    others = {scram.scram_verifier("a" * 32, "read"), scram.scram_verifier("b" * 32, "app")}
    assert len({text.split("$")[1] for text in (verifier, *others)}) == 3


@pytest.mark.parametrize("password", ["", "grün" * 8, "line\nbreak"])
def test_a_password_that_clients_read_differently_is_refused(password: str) -> None:
    """An empty password, or one that needs normalising, is refused in a sentence that does not show it."""
    with pytest.raises(AnsibleFilterError) as caught:
        scram.scram_verifier(password, "app")
    assert not password or password not in str(caught.value)
