"""The identity of a dump."""

from specpipe.schemas.records.dump import DumpIdentity
from tests.storage.tiny import make_identity


def test_variables_of_the_template_belong_to_the_identity_where_there_are_any() -> None:
    """Dumps that have none keep the bytes and the fingerprint that they had."""
    without, with_some = make_identity(), make_identity(chat_template_kwargs={"think": False})
    assert "chat_template_kwargs" not in without.model_dump(mode="json")
    assert b"chat_template_kwargs" not in without.to_json()
    assert with_some.fingerprint != without.fingerprint
    for identity in (without, with_some):
        assert DumpIdentity.model_validate_json(identity.to_json()) == identity
