"""Signed references: what is signed, keys in every form, and pictures that are not the trusted sender's."""

import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import neuralcodec as nc
from neuralcodec.cli import main
from neuralcodec.errors import BackendUnavailableError, SigningError
from neuralcodec.fragments import split
from neuralcodec.packet import SIGNED, Motion, ReferencePart
from neuralcodec.reference import encode_reference
from neuralcodec.signing import generate_key, private_key, public_hex, public_key, sign, statement, verify

pytest.importorskip("cryptography")
SECRET = bytes(range(32))
# RFC 8032's algorithm on that secret: any implementation gives this key and, for the statement below, this signature
PUBLIC = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
SAID = statement(bytes(8), (640, 480), 3, 1, (-5, 12, 640), b"picture", b"call 7")


def test_the_statement_byte_by_byte() -> None:
    assert SAID.hex() == (
        "6e657572616c636f646563207265666572656e636520310a"  # "neuralcodec reference 1\n"
        "0000000000000000"  # pack id
        "0301"  # reference, codec
        "2cea274d0bedc39ec4ab6ba9e59ec889e3ed6fb56a1cf088a64d9b383378dc97"
        "07"  # length of the picture
        "0918"  # crop left -5, top 12
        "8005"  # side 640
        "8005e003"  # source 640 x 480
        "0663616c6c2037"  # context
    )


def test_a_context_is_255_bytes_at_most() -> None:
    said = bytes(8), (640, 480), 3, 1, (-5, 12, 640), b"picture"
    assert statement(*said, bytes(255)).endswith(b"\xff" + bytes(255))
    with pytest.raises(ValueError, match="expected at most 255 bytes"):
        statement(*said, bytes(256))


def test_known_key_and_signature() -> None:
    assert public_hex(private_key(SECRET).public_key()) == PUBLIC
    signature = sign(private_key(SECRET), SAID)
    assert len(signature) == 64 and verify(public_key(PUBLIC), signature, SAID)


@pytest.mark.parametrize(
    "change",
    [
        {"pack_id": b"\1" + bytes(7)},
        {"source": (640, 481)},
        {"reference": 4},
        {"codec": 2},
        {"crop": (-5, 12, 641)},
        {"crop": (-5, 13, 640)},
        {"picture": b"picturf"},
        {"context": b"call 8"},
        {"before": bytes(32)},
    ],
    ids=lambda c: "-".join(c),
)
def test_everything_that_could_swap_a_face_is_signed(change: dict[str, object]) -> None:
    said = {
        "pack_id": bytes(8), "source": (640, 480), "reference": 3, "codec": 1, "crop": (-5, 12, 640),
        "picture": b"picture", "context": b"call 7",
    }  # fmt: skip
    assert statement(**said) == SAID  # type: ignore[arg-type]
    assert not verify(public_key(PUBLIC), sign(private_key(SECRET), SAID), statement(**said | change))  # type: ignore[arg-type]


def test_keys_from_files(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form

    shown = generate_key(tmp_path / "me.key")
    key = private_key(tmp_path / "me.key")
    assert shown == public_hex(public_key(str(tmp_path / "me.key.pub"))) == public_hex(key.public_key())
    assert public_hex(public_key(shown)) == public_hex(public_key(bytes.fromhex(shown))) == shown
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / "me.key").stat().st_mode) == 0o600
    (tmp_path / "id_ed25519").write_bytes(
        key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    )
    (tmp_path / "id.pub").write_bytes(key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH))
    assert public_hex(private_key(tmp_path / "id_ed25519").public_key()) == shown
    assert public_hex(public_key(tmp_path / "id.pub")) == shown
    with pytest.raises(SigningError, match="never replaced"):
        generate_key(tmp_path / "me.key")
    (tmp_path / "link.pub").symlink_to(tmp_path / "elsewhere")  # to nothing yet
    with pytest.raises(SigningError, match=r"link.pub exists"):
        generate_key(tmp_path / "link")


FULL_DISK = """
import resource, signal, sys
from neuralcodec.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
sys.exit(main(["keygen", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file size limits")
def test_a_full_disk_leaves_no_half_key(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "k")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 1 and done.stderr.startswith("neuralcodec: Cannot write") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    generate_key(tmp_path / "k")


def test_unusable_keys_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate_key(tmp_path / "k")
    (tmp_path / "text").write_text("hello")
    for source, load in (("k.pub", private_key), ("text", private_key), ("k", public_key), ("text", public_key)):
        with pytest.raises(SigningError, match="not a (private|public) key"):
            load(tmp_path / source)
    with pytest.raises(SigningError, match="Cannot read the key"):
        public_key(tmp_path / "none")
    with pytest.raises(SigningError, match="Cannot read the key kkk"):  # as long as a key in digits
        public_key("k" * 64)
    for load in (private_key, public_key):
        with pytest.raises(SigningError, match="expected an Ed25519"):
            load(7)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'neuralcodec\[sign\]'"):
        private_key(SECRET)


@pytest.fixture(scope="module")
def signed(portrait_clip: list[np.ndarray]) -> list[nc.packet.Packet]:  # type: ignore[name-defined]
    sender = nc.Encoder(6, device="cpu", threads=1, signing_key=SECRET, signing_context=b"call 7")
    return [p for pts, image in enumerate(portrait_clip[:3]) for p in sender.encode(image, pts)]


def shown(packets: list[object], **options: object) -> tuple[int, nc.Decoder]:
    receiver = nc.Decoder(device="cpu", threads=1, **options)  # type: ignore[arg-type]
    return sum(len(receiver.decode(bytes(p))) for p in packets), receiver  # type: ignore[call-overload]


def test_only_the_trusted_sender_is_shown(signed: list[object]) -> None:
    assert all(p.codec & SIGNED for p in signed if isinstance(p, ReferencePart))
    frames, receiver = shown(signed, trusted_sender=PUBLIC, signing_context=b"call 7")
    assert frames == 3 and receiver.stats.rejected_references == 0
    assert shown(signed)[0] == 3  # a receiver that trusts anybody reads it too
    for stranger in ({"trusted_sender": bytes(31) + b"\1"}, {"trusted_sender": PUBLIC, "signing_context": b"call 8"}):
        frames, receiver = shown(signed, **{"signing_context": b"call 7", **stranger})
        assert frames == 0 and receiver.stats.rejected_references == 1 and receiver.wants_reference


def test_a_picture_of_somebody_else_is_not_shown(
    signed: list[object], portrait_clip: list[np.ndarray]
) -> None:
    """Unsigned, with a borrowed signature, and in another place: the frames go on with the sender's own picture."""
    frames, receiver = shown(signed[:-1], trusted_sender=PUBLIC, signing_context=b"call 7")
    parts = [p for p in signed if isinstance(p, ReferencePart)]
    (own, *_) = [b"".join(p.payload for p in parts)]
    foreign = encode_reference(np.ascontiguousarray(portrait_clip[5][:, ::-1]), max_bytes=1500)
    attacks = [
        split(foreign, reference=0, codec=1, crop=parts[0].crop),
        split(own[:64] + foreign, reference=0, codec=1 | SIGNED, crop=parts[0].crop),
        split(own, reference=1, codec=1 | SIGNED, crop=parts[0].crop),
    ]
    for number, attack in enumerate(attacks, 1):
        for packet in attack:
            receiver.decode(bytes(packet))
        assert receiver.stats.rejected_references == number and receiver.stats.references == 1
    moved = [replace(p, crop=(0, 0, 100)) if isinstance(p, ReferencePart) else p for p in signed]
    assert shown(moved, trusted_sender=PUBLIC, signing_context=b"call 7")[0] == 0
    last = signed[-1]
    assert isinstance(last, Motion)
    (frame,) = receiver.decode(bytes(last))
    honest = nc.Decoder(device="cpu", threads=1)
    (*_, expected) = [f for p in signed for f in honest.decode(bytes(p))]  # type: ignore[call-overload]
    assert np.array_equal(frame.image, expected.image)


def test_commands(tmp_path: Path, portrait_clip: list[np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    from fractions import Fraction

    from neuralcodec.media import VideoWriter

    film, key = tmp_path / "a.mp4", str(tmp_path / "key")
    with VideoWriter(film, 256, 256, Fraction(1, 25)) as writer:
        for pts, image in enumerate(portrait_clip[:2]):
            writer.write(image, pts)
    assert main(["keygen", key]) == 0 and "public key, for receivers" in capsys.readouterr().out
    assert main(["keygen", key]) == 1 and "never replaced" in capsys.readouterr().err
    run = ["--device", "cpu", "--threads", "1"]
    ncv, out = str(tmp_path / "a.ncv"), str(tmp_path / "b.mp4")
    assert main(["encode", str(film), ncv, "--sign", key, *run]) == 0
    assert main(["decode", ncv, out, "--trusted-sender", f"{key}.pub", *run]) == 0
    capsys.readouterr()
    assert main(["decode", ncv, str(tmp_path / "c.mp4"), "--trusted-sender", PUBLIC, *run]) == 1
    assert "is not signed by the trusted sender" in capsys.readouterr().err
    assert not (tmp_path / "c.mp4").exists()
