"""A signed bundle loads for who has the public key; what anybody else changed, whatever hashes they wrote, does not."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hadskip_export import build, validate
from hadskip_export.cli import main
from hadskip_export.exporters.amend import add_points
from hadskip_export.exporters.sign import PASSWORD, Signer
from hadskip_export.runtime import BundleError, Predictor
from hadskip_export.runtime.bundle import DIGEST, MANIFEST, read_bundle
from hadskip_export.runtime.signatures import SIGNATURE, check_signature
from tests.runtime.editing import change_manifest, copy_of, outcome, rehash

TEXT = "a good film"


def write_key(folder: Path, name: str = "key", key=None, password: bytes | None = None) -> tuple[Path, Path]:
    """Files of a private key and of its public one."""
    folder.mkdir(exist_ok=True)
    key = key or ec.generate_private_key(ec.SECP256R1())
    closed = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / name, folder / f"{name}.pub"
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, form, closed))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def signed(bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> Path:
    mine = copy_of(bundle, tmp_path)
    assert build(mine, sign=keys[0]) is None
    return mine


def load(bundle: Path, public_key: Path) -> str:
    with Predictor.load(bundle, threads=1, verify=public_key) as predictor:
        return predictor(TEXT).label


def by_the_librarys_own_command(bundle: Path, public_key: Path) -> int:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(bundle), "--public_key", str(public_key)]
    done = subprocess.run([*command, "--signature", str(bundle / SIGNATURE)], capture_output=True, check=False)
    return done.returncode


def test_a_signed_bundle_loads_under_any_name_and_the_librarys_own_command_takes_it(signed: Path, keys, tmp_path: Path):
    moved = signed.rename(tmp_path / "another name")
    with Predictor.load(moved, threads=1) as predictor:
        assert load(moved, keys[1]) == predictor(TEXT).label
    assert by_the_librarys_own_command(moved, keys[1]) == 0
    assert validate(moved, verify=keys[1]).passed


def test_a_run_is_built_and_signed_at_once(run_folder: Path, keys, tmp_path: Path):
    assert build(run_folder, out=tmp_path / "bundle", sign=keys[0]).parity == "passed"
    assert by_the_librarys_own_command(tmp_path / "bundle", keys[1]) == 0
    assert load(tmp_path / "bundle", keys[1])


CHANGES = {
    "labels that change places": lambda plain: plain["model"]["labels"].reverse(),
    "a threshold": lambda plain: plain["points"][0].update(thresholds=[9.0] * plain["model"]["layers"]),
    "a file that is left out": lambda plain: plain["files"].pop(next(n for n in plain["files"] if "golden" in n)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_since_does_not_load_though_its_hashes_are_right(signed: Path, keys, change):
    change_manifest(signed, change)
    read_bundle(signed)  # nothing else would have noticed
    assert "not what the holder of" in outcome(load, signed, keys[1])


def test_a_changed_file_does_not_load_though_its_hashes_are_right(signed: Path, keys):
    file = next((signed / "model" / "weights").iterdir())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    rehash(signed)
    read_bundle(signed)
    assert "not what the holder of" in outcome(load, signed, keys[1])


def test_another_key_or_no_signature_is_refused(signed: Path, keys, tmp_path: Path):
    assert "not what the holder of" in outcome(load, signed, write_key(tmp_path / "others")[1])
    (signed / SIGNATURE).unlink()
    assert "not signed" in outcome(load, signed, keys[1])


def test_what_the_same_key_signed_elsewhere_does_not_vouch_for_a_bundle(bundle: Path, keys, tmp_path: Path):
    signing = pytest.importorskip("model_signing.signing")
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("another model")
    signing.Config().use_elliptic_key_signer(private_key=keys[0]).sign(other, other / SIGNATURE)
    evil = copy_of(bundle, tmp_path)
    for file in other.iterdir():
        shutil.copyfile(file, evil / file.name)
    assert "manifest.json is another" in outcome(load, evil, keys[1])


def test_files_that_nobody_signed_are_not_even_read(signed: Path, keys):
    os.mkfifo(signed / "pipe")  # whoever opened it would wait for ever
    with open(signed / "model" / "large", "wb") as large:
        large.truncate(1 << 40)
    assert load(signed, keys[1])


DAMAGED = {
    "empty": b"",
    "not JSON": b"signed!",
    "not an object": b"[]",
    "deep": b"[" * 100_000,
    "without what it needs": b"{}",
    "too large": b" " * ((16 << 20) + 1),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_signature_is_refused_in_a_line(signed: Path, keys, content: bytes):
    (signed / SIGNATURE).write_bytes(content)
    assert isinstance(outcome(load, signed, keys[1]), str)
    with pytest.raises(BundleError):
        load(signed, keys[1])


def changed_envelope(bundle: Path, change) -> None:
    """The signature with what `change` makes of its statement, or of the envelope."""
    content = json.loads((bundle / SIGNATURE).read_bytes())
    statement = json.loads(base64.b64decode(content["dsseEnvelope"]["payload"]))
    change(content["dsseEnvelope"], statement)
    content["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (bundle / SIGNATURE).write_text(json.dumps(content))


def test_a_statement_that_was_changed_under_its_signature_is_refused(signed: Path, keys):
    change_manifest(signed, CHANGES["a threshold"])
    digest = hashlib.sha256((signed / MANIFEST).read_bytes()).hexdigest()

    def forge(_, statement):
        entry = next(one for one in statement["predicate"]["resources"] if one["name"] == MANIFEST)
        entry["digest"] = digest

    changed_envelope(signed, forge)
    assert "not what the holder of" in outcome(load, signed, keys[1])


def test_a_signature_of_nobody_is_refused(signed: Path, keys):
    nobodys = base64.b64encode(b"0" * 70).decode()
    changed_envelope(signed, lambda envelope, _: envelope["signatures"][0].update(sig=nobodys))
    assert "not what the holder of" in outcome(load, signed, keys[1])


def test_a_manifest_that_was_read_and_is_no_longer_there_is_not_vouched_for(signed: Path, keys):
    """As of who writes one to be read, and then puts the signed one in its place."""
    content, digest = (signed / MANIFEST).read_bytes(), (signed / DIGEST).read_bytes()
    change_manifest(signed, CHANGES["a threshold"])
    read = read_bundle(signed)
    (signed / MANIFEST).write_bytes(content)
    (signed / DIGEST).write_bytes(digest)
    assert "manifest.json is another" in outcome(check_signature, read, keys[1])
    assert outcome(check_signature, read_bundle(signed), keys[1]) is None


def test_a_signature_that_the_library_warns_of_leaves_standard_output_alone(signed: Path, keys, capsys):
    content = json.loads((signed / SIGNATURE).read_bytes())
    del content["verificationMaterial"]["publicKey"]["hint"]
    (signed / SIGNATURE).write_text(json.dumps(content))
    load(signed, keys[1])
    captured = capsys.readouterr()
    assert captured.out == "" and "WARNING" in captured.err


def test_a_link_to_a_bundle_is_signed_and_what_cannot_be_is_refused_in_a_line(signed: Path, keys, tmp_path: Path):
    link = tmp_path / "current"
    link.symlink_to(signed)
    build(link, sign=keys[0])
    assert load(link, keys[1])
    (signed / "model" / "link").symlink_to("config.json")
    assert "cannot be signed" in outcome(lambda: build(signed, sign=keys[0]))
    assert load(signed, keys[1])


def test_options_of_an_engine_are_not_ignored(signed: Path, keys):
    for options in ({"cut": "whole"}, {"precision": "int8"}):
        assert "say which --engine" in outcome(lambda options=options: build(signed, sign=keys[0], **options))


def test_a_pipe_in_its_place_is_not_waited_for(signed: Path, keys):
    (signed / SIGNATURE).unlink()
    os.mkfifo(signed / SIGNATURE)
    assert "not a regular file" in outcome(load, signed, keys[1])


def test_an_engine_is_added_and_the_bundle_signed_again(signed: Path, keys):
    assert build(signed, engine="ort", cut="whole", sign=keys[0]).parity == "passed"
    assert load(signed, keys[1])
    assert by_the_librarys_own_command(signed, keys[1]) == 0


def test_a_file_that_the_bundle_does_not_name_may_go_afterwards(signed: Path, keys):
    left = signed / "model" / "of_an_engine_that_was_replaced.onnx"
    left.write_bytes(b"served by somebody still")
    build(signed, sign=keys[0])
    assert by_the_librarys_own_command(signed, keys[1]) == 0
    left.unlink()
    assert by_the_librarys_own_command(signed, keys[1]) == 0
    assert load(signed, keys[1])


def test_whoever_changes_a_signed_bundle_hears_that_its_signature_is_old(signed: Path, keys, capsys):
    add_points(signed, read_bundle(signed).manifest.points)
    assert f"sign it again with hadskip-export build {signed} --sign KEY" in capsys.readouterr().err
    assert "not what the holder of" in outcome(load, signed, keys[1])
    build(signed, sign=keys[0])
    assert load(signed, keys[1])


def test_keys_that_cannot_sign_or_verify_are_named_before_anything_is_done(signed: Path, keys, tmp_path: Path):
    others = write_key(tmp_path / "rsa", key=rsa.generate_private_key(65537, 2048))
    for wrong in (tmp_path / "none", others[0], keys[1]):
        assert f"--sign {wrong}: not a private key" in outcome(Signer, wrong)
    for wrong in (tmp_path / "none", others[1], keys[0]):
        assert f"{wrong}: not a public key" in outcome(load, signed, wrong)


@pytest.mark.parametrize("curve", [ec.SECP384R1, ec.SECP521R1])
def test_a_key_of_another_curve_that_is_encrypted_opens_with_its_password(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curve
):
    private, public = write_key(tmp_path / "closed", key=ec.generate_private_key(curve()), password=b"open, sesame")
    assert PASSWORD in outcome(Signer, private)
    monkeypatch.setenv(PASSWORD, "open, sesame")
    mine = copy_of(bundle, tmp_path)
    build(mine, sign=private)
    assert load(mine, public)


def test_the_command_line_signs_and_refuses(signed: Path, keys, tmp_path: Path):
    other, runner = write_key(tmp_path / "others")[1], CliRunner()
    for command in (["predict", str(signed), TEXT], ["validate", str(signed)], ["serve", str(signed)]):
        refused = runner.invoke(main, [*command, "--verify", str(other)])
        assert refused.exit_code == 2
        assert refused.stderr.count("\n") == 1 and "not what the holder of" in refused.stderr
    assert runner.invoke(main, ["predict", str(signed), TEXT, "--verify", str(keys[1])]).exit_code == 0
    assert runner.invoke(main, ["build", str(signed), "--sign", str(keys[0])]).stdout == f"written: {signed}\n"
