"""Transport certificates: who may be what, for how long, and what is refused."""

from datetime import timedelta

import pytest
from cryptography import x509 as lib
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from comity.wire import instants
from comity.wire.errors import ComityError
from comity_crypto import x509


@pytest.fixture(scope="module")
def authority():
    return x509.create_authority("med")


def _usages(pem: bytes) -> list[lib.ObjectIdentifier]:
    return list(lib.load_pem_x509_certificate(pem).extensions.get_extension_for_class(lib.ExtendedKeyUsage).value)


def _csr(key, *, subject: str = "north", extra: lib.ExtensionType | None = None) -> bytes:
    builder = lib.CertificateSigningRequestBuilder().subject_name(
        lib.Name([lib.NameAttribute(NameOID.COMMON_NAME, subject)])
    )
    if extra is not None:
        builder = builder.add_extension(extra, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_node_certificate_names_the_organisation_that_the_authority_says(authority):
    key, csr = x509.make_csr("somebody-else")
    pem = x509.issue_node(*authority, csr, "med", "north")
    x509.check_set(key, pem, authority[1], spiffe="spiffe://med/org/north")
    assert x509.spiffe_of(pem) == "spiffe://med/org/north"
    assert _usages(pem) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    cert = lib.load_pem_x509_certificate(pem)
    assert cert.subject.rfc4514_string() == "CN=north"
    now = instants.now()
    assert timedelta(seconds=50) < now - cert.not_valid_before_utc < timedelta(seconds=90)
    assert timedelta(days=89) < x509.expires_at(pem) - now <= timedelta(days=90)
    assert not cert.extensions.get_extension_for_class(lib.BasicConstraints).value.ca


def test_extensions_of_a_request_are_ignored(authority):
    wish = lib.SubjectAlternativeName([lib.UniformResourceIdentifier("spiffe://med/coordinator")])
    csr = _csr(ec.generate_private_key(ec.SECP256R1()), extra=wish)
    assert x509.spiffe_of(x509.issue_node(*authority, csr, "med", "north")) == "spiffe://med/org/north"


def test_der_and_pem_say_the_same(authority):
    pem = x509.issue_node(*authority, x509.make_csr("north")[1], "med", "north")
    der = lib.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    assert x509.spiffe_of(der) == x509.spiffe_of(pem)
    assert x509.fingerprint(der) == x509.fingerprint(pem)
    assert len(x509.fingerprint(pem)) == 64
    assert int(x509.certificate_serial(pem), 16) == lib.load_pem_x509_certificate(pem).serial_number


def test_requests_with_other_keys_or_broken_signatures_are_refused(authority):
    other = _csr(rsa.generate_private_key(65537, 2048))
    curve = _csr(ec.generate_private_key(ec.SECP384R1()))
    der = bytearray(lib.load_pem_x509_csr(x509.make_csr("north")[1]).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    try:
        broken = lib.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    except ValueError:
        broken = b"unreadable"
    own = _csr(serialization.load_pem_private_key(authority[0], None))
    for csr in (other, curve, broken, own, b"", b"-----BEGIN", b"x" * 20_000, authority[1]):
        with pytest.raises(ComityError, match="CERTIFICATE_INVALID"):
            x509.issue_node(*authority, csr, "med", "north")


@pytest.mark.parametrize(("consortium", "org"), [("med", "coordinator"), ("med", "a/b"), ("m d", "north"), ("med", "")])
def test_bad_names_are_refused(authority, consortium, org):
    with pytest.raises(ComityError, match="MALFORMED"):
        x509.issue_node(*authority, x509.make_csr("north")[1], consortium, org)


def test_join_certificates_are_short_lived_clients(authority):
    key, pem = x509.issue_join(*authority, "med", "tok-1", 600)
    x509.check_set(key, pem, authority[1], spiffe="spiffe://med/join/tok-1")
    assert _usages(pem) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert x509.expires_at(pem) - instants.now() <= timedelta(seconds=600)
    for valid_s in (0, -1, 10**9):
        with pytest.raises(ComityError, match="MALFORMED"):
            x509.issue_join(*authority, "med", "tok-1", valid_s)


def test_server_certificates_carry_names_and_one_spiffe_id(authority):
    key, pem = x509.issue_server(*authority, "med", ["localhost", "hub.example.org"], ["127.0.0.1", "::1"])
    x509.check_set(key, pem, authority[1], spiffe="spiffe://med/coordinator")
    assert _usages(pem) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = lib.load_pem_x509_certificate(pem).extensions.get_extension_for_class(lib.SubjectAlternativeName).value
    assert names.get_values_for_type(lib.DNSName) == ["localhost", "hub.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(lib.IPAddress)] == ["127.0.0.1", "::1"]
    for dns, ips in ([], []), ([], ["300.1.1.1"]), (["x"] * 40, []), (["é"], []):
        with pytest.raises(ComityError, match="MALFORMED"):
            x509.issue_server(*authority, "med", dns, ips)


def test_mixed_sets_and_foreign_authorities_are_refused(authority):
    key, csr = x509.make_csr("north")
    pem = x509.issue_node(*authority, csr, "med", "north")
    stranger_key, stranger = x509.create_authority("med")
    for args in ((x509.make_csr("north")[0], pem, authority[1]), (key, pem, stranger)):
        with pytest.raises(ComityError, match="CERTIFICATE_INVALID"):
            x509.check_set(*args)
    with pytest.raises(ComityError, match="CERTIFICATE_INVALID"):
        x509.check_set(key, pem, authority[1], spiffe="spiffe://med/org/south")
    with pytest.raises(ComityError, match="CERTIFICATE_INVALID"):
        x509.issue_node(stranger_key, authority[1], csr, "med", "north")
    with pytest.raises(ComityError, match="KEY_UNREADABLE"):
        x509.issue_node(b"nonsense", authority[1], csr, "med", "north")


def test_exactly_one_uri_name(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    name = lib.Name([lib.NameAttribute(NameOID.COMMON_NAME, "x")])

    def cert(uris: list[str] | None) -> bytes:
        now = instants.now()
        builder = (
            lib.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        )
        builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
        if uris is not None:
            names = [lib.UniformResourceIdentifier(uri) for uri in uris] + [lib.DNSName("a")]
            builder = builder.add_extension(lib.SubjectAlternativeName(names), critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    assert x509.spiffe_of(cert(["spiffe://med/org/a"])) == "spiffe://med/org/a"
    for uris in (None, [], ["spiffe://med/org/a", "spiffe://med/org/b"]):
        with pytest.raises(ComityError, match="CERTIFICATE_INVALID"):
            x509.spiffe_of(cert(uris))
