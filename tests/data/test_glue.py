"""The seven tasks from files laid out as GLUE's are, and from a folder laid out as the hub's repository is."""

import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hadskip_export import train
from hadskip_export.data.glue import GLUE_TASKS
from hadskip_export.data.metrics import accuracy
from hadskip_export.data.problems import SINGLE, Problem
from hadskip_export.data.tasks import TaskData, load_task
from hadskip_export.modeling.checkpoint import load_classifier, load_student
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.errors import DataError
from hadskip_export.trainers.batches import encode
from hadskip_export.trainers.evaluation import full_logits
from tests.conftest import QUICK
from tests.trainers.oracle import above, predict_routed

QUOTES = 'a "great movie'  # an open quote: with quoting it would swallow the following lines
MRPC_HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
QQP_HEADER = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
MNLI_COMMON = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
    "\tsentence2_parse\tsentence1\tsentence2\tlabel1"
)
MNLI_TRAIN, MNLI_DEV = f"{MNLI_COMMON}\tgold_label", f"{MNLI_COMMON}\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
PARSES = "( ( A film ) )\t( ( A plot ) )\t(ROOT (NP film))\t(ROOT (NP plot))"


def mnli_train(number: int, first: str, second: str, label: str) -> str:
    return f"{number}\t31193\t31193n\tgovernment\t{PARSES}\t{first}\t{second}\t{label}\t{label}"


def mnli_dev(number: int, first: str, second: str, label: str) -> str:
    """Of the five annotators the first differs from the gold label."""
    other = "neutral" if label != "neutral" else "entailment"
    votes = "\t".join([other, *[label] * 4])
    return f"{number}\t63735\t63735n\tslate\t{PARSES}\t{first}\t{second}\t{votes}\t{label}"


FILES = {
    "SST-2/train.tsv": ["sentence\tlabel", "hide new secretions \t0", f"{QUOTES}\t1", 'fine , "really" \t1'],
    "SST-2/dev.tsv": ["sentence\tlabel", "bleak and desperate \t0"],
    "CoLA/train.tsv": ["gj04\t1\t\tOur friends won't buy this.", 'cj99\t0\t*\tThe more you would want, "less.'],
    "CoLA/dev.tsv": ["gj04\t1\t\tThe sailors rode the breeze."],
    "RTE/train.tsv": [
        "index\tsentence1\tsentence2\tlabel",
        "0\tNo Weapons Found.\tWeapons Found.\tnot_entailment",
        f"1\t{QUOTES}\tA movie.\tentailment",
    ],
    "RTE/dev.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tDana Reeve has died.\tAn accident.\tnot_entailment"],
    "QNLI/train.tsv": [
        "index\tquestion\tsentence\tlabel",
        f"0\tWhen did it begin?\t{QUOTES}\tnot_entailment",
        "1\tWho?\tHe did.\tentailment",
    ],
    "QNLI/dev.tsv": ["index\tquestion\tsentence\tlabel", "0\tWhat came into force?\tAs of that day.\tentailment"],
    "QQP/train.tsv": [
        QQP_HEADER,
        "133273\t213221\t213222\tHow is life?\tWhat is it like?\t0",
        f"402555\t536040\t536041\t{QUOTES}\tHow?\t1",
    ],
    "QQP/dev.tsv": [QQP_HEADER, "201359\t303345\t303346\tWhy African-Americans?\t\t0"],
    "MRPC/train.tsv": [
        MRPC_HEADER,
        f'1\t702876\t702977\tAmrozi accused his brother, "the witness".\t{QUOTES}',
        "0\t2108705\t2108831\tYucaipa owned it.\tYucaipa bought it.",
    ],
    "MRPC/dev.tsv": [MRPC_HEADER, '1\t1355540\t1355592\tHe said.\t" He said.'],
    "MNLI/train.tsv": [
        MNLI_TRAIN,
        mnli_train(0, "Product and geography.", QUOTES, "neutral"),
        mnli_train(1, "You know.", "You lose.", "entailment"),
        mnli_train(2, "One of us.", "None.", "contradiction"),
    ],
    "MNLI/dev_matched.tsv": [MNLI_DEV, mnli_dev(0, "The new rights.", "Everyone.", "neutral")],
    "MNLI/dev_mismatched.tsv": [MNLI_DEV, mnli_dev(0, "Your contribution.", "It helped.", "entailment")],
}

# metric, labels, training texts, their classes, evaluation texts, their classes
WANTED = {
    "sst2": ("accuracy", ("0", "1"), ["hide new secretions ", QUOTES, 'fine , "really" '], [0, 1, 1],
             ["bleak and desperate "], [0]),
    "cola": ("matthews", ("0", "1"), ["Our friends won't buy this.", 'The more you would want, "less.'], [1, 0],
             ["The sailors rode the breeze."], [1]),
    "rte": ("accuracy", ("entailment", "not_entailment"),
            [("No Weapons Found.", "Weapons Found."), (QUOTES, "A movie.")], [1, 0],
            [("Dana Reeve has died.", "An accident.")], [1]),
    "qnli": ("accuracy", ("entailment", "not_entailment"),
             [("When did it begin?", QUOTES), ("Who?", "He did.")], [1, 0],
             [("What came into force?", "As of that day.")], [0]),
    "qqp": ("f1", ("0", "1"), [("How is life?", "What is it like?"), (QUOTES, "How?")], [0, 1],
            [("Why African-Americans?", "")], [0]),
    "mrpc": ("f1", ("0", "1"),
             [('Amrozi accused his brother, "the witness".', QUOTES), ("Yucaipa owned it.", "Yucaipa bought it.")],
             [1, 0], [("He said.", '" He said.')], [1]),
    "mnli": ("accuracy", ("entailment", "neutral", "contradiction"),
             [("Product and geography.", QUOTES), ("You know.", "You lose."), ("One of us.", "None.")], [1, 0, 2],
             [("The new rights.", "Everyone.")], [1]),
}  # fmt: skip


def write(file: Path, lines: list[str], start: str = "", end: str = "\n") -> Path:
    """Without a line end after the last line, as some of GLUE's files are."""
    file.parent.mkdir(exist_ok=True)
    file.write_bytes((start + end.join(lines)).encode("utf-8"))
    return file


def load(task: str, folder: Path | None, **more) -> TaskData:
    return load_task(task=task, data_dir=None if folder is None else str(folder), **more)


def assert_is(data: TaskData, task: str) -> None:
    metric, labels, texts, classes, evaluation_texts, evaluation_classes = WANTED[task]
    assert (data.name, data.metric, data.labels) == (task, metric, labels)
    assert data.train.texts == texts and data.problem.targets(data.train.labels).tolist() == classes
    assert data.evaluation.texts == evaluation_texts
    assert data.problem.targets(data.evaluation.labels).tolist() == evaluation_classes
    if task == "mnli":
        assert data.mismatched is not None and data.mismatched.texts == [("Your contribution.", "It helped.")]
        assert data.problem.targets(data.mismatched.labels).tolist() == [0]
    else:
        assert data.mismatched is None


# GLUE's own files


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """GLUE's root."""
    for name, lines in FILES.items():
        write(tmp_path / name, lines)
    return tmp_path


def test_the_tasks_and_metrics_are_those_of_table_5():
    assert GLUE_TASKS.keys() == WANTED.keys()


@pytest.mark.parametrize("task", WANTED)
def test_every_task_from_its_folder_or_glues_root(task, glue):
    assert_is(load(task, glue), task)
    assert_is(load(task, glue / GLUE_TASKS[task].folder), task)


def test_mrpc_as_microsoft_has_it(tmp_path):
    """With a byte order mark and Windows line ends."""
    for old, new in (("train.tsv", "msr_paraphrase_train.txt"), ("dev.tsv", "msr_paraphrase_test.txt")):
        write(tmp_path / new, [*FILES[f"MRPC/{old}"], ""], start="\ufeff", end="\r\n")
    assert_is(load("mrpc", tmp_path), "mrpc")


def test_half_of_microsofts_mrpc_is_not_enough(tmp_path):
    write(tmp_path / "msr_paraphrase_train.txt", FILES["MRPC/train.tsv"])
    with pytest.raises(DataError, match=r"msr_paraphrase_test\.txt: no such file"):
        load("mrpc", tmp_path)


def test_mrpc_prefers_glues_files_and_does_not_mix(glue):
    folder = glue / "MRPC"
    write(folder / "msr_paraphrase_train.txt", [MRPC_HEADER, "0\t1\t2\tother\tfile", "1\t1\t2\tother\tfile"])
    write(folder / "msr_paraphrase_test.txt", [MRPC_HEADER, "0\t1\t2\tother\tfile"])
    assert_is(load("mrpc", glue), "mrpc")
    (folder / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"dev\.tsv: no such file"):
        load("mrpc", glue)


def test_a_missing_file_is_named_with_all_that_are_needed(glue):
    (glue / "MNLI" / "dev_mismatched.tsv").unlink()
    with pytest.raises(DataError, match=r"dev_mismatched\.tsv: no such file; --data-dir .*dev_matched\.tsv"):
        load("mnli", glue)


SOUND = "1\t2\t3\tWhy?\tWhat for?\t1"


def test_a_few_broken_rows_are_left_out_and_counted(glue, capsys):
    """QQP has rows cut short by a line end within a question."""
    rows = [QQP_HEADER, *[SOUND] * 99, "7\t8\t9\tWhat is", "a tab\tand\ta\tline\tend?\t0\t", *[SOUND] * 99]
    write(glue / "QQP" / "train.tsv", rows)
    data = load("qqp", glue)
    assert data.train.texts == [("Why?", "What for?")] * 198 and set(data.train.labels) == {"1"}
    said = capsys.readouterr().err
    assert "QQP/train.tsv: 2 of 200 rows left out" in said and "line 101: expected 6 columns, found 4" in said
    assert said.count("\n") == 1


def test_many_broken_rows_are_refused(glue):
    write(glue / "QQP" / "train.tsv", [QQP_HEADER, *[SOUND] * 98, "7\t8\t9\tWhat is"])
    with pytest.raises(DataError, match=r"QQP/train\.tsv, line 100: expected 6 columns, found 4"):
        load("qqp", glue)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("RTE/train.tsv", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tmaybe"], r"line 2: label 'maybe'.*not_ent"),
        ("CoLA/dev.tsv", ["gj04\t1\t\tA.", "gj04\t-1\t\tB."], r"line 2: label '-1'.*0, 1"),
        ("CoLA/dev.tsv", ["source\tlabel\tstar\tsentence", "gj04\t1\t\tA."], r"line 1: label 'label'"),
        ("SST-2/dev.tsv", ["sentence,label", "good,1"], r"no column 'sentence'.*SST-2"),
        ("SST-2/dev.tsv", ["index\tsentence", "0\tgood"], r"no column 'label'"),
        ("SST-2/dev.tsv", ["sentence\tlabel", ""], "no rows"),
        ("SST-2/dev.tsv", [""], "no column"),
    ],
)
def test_a_file_that_is_not_glues_is_refused_by_name(name, lines, message, glue):
    file = write(glue / name, lines)
    task = next(task for task, known in GLUE_TASKS.items() if known.folder == file.parent.name)
    with pytest.raises(DataError, match=message) as caught:
        load(task, glue)
    assert str(caught.value).startswith(str(file))


def test_bytes_that_are_not_text_are_refused(glue):
    (glue / "SST-2" / "dev.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(DataError, match=r"dev\.tsv: not UTF-8"):
        load("sst2", glue)


def test_a_fine_tuned_models_classes_keep_their_order(glue):
    known = ("contradiction", "neutral", "entailment")
    data = load("mnli", glue, known=Problem(SINGLE, known))
    assert data.labels == known and data.problem.targets(data.train.labels).tolist() == [1, 2, 0]
    write(glue / "MNLI" / "train.tsv", [MNLI_TRAIN, mnli_train(0, "a", "b", "neutral")])
    with pytest.raises(DataError, match=r"MNLI.dev_mismatched\.tsv.*'entailment'.*neutral, contradiction"):
        load("mnli", glue, known=Problem(SINGLE, ("neutral", "contradiction")))


def test_a_model_whose_second_class_is_not_the_positive_one_has_no_f1(glue):
    assert load("qqp", glue, known=Problem(SINGLE, ("LABEL_0", "LABEL_1"))).labels == ("0", "1")
    with pytest.raises(DataError, match=r"--task qqp: F1.*'1'; the model has 1, 0"):
        load("qqp", glue, known=Problem(SINGLE, ("1", "0")))


# The hub

HUB_LABELS = {
    "sst2": ["negative", "positive"],
    "cola": ["unacceptable", "acceptable"],
    "rte": ["entailment", "not_entailment"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["not_duplicate", "duplicate"],
    "mrpc": ["not_equivalent", "equivalent"],
    "mnli": ["entailment", "neutral", "contradiction"],
}
HUB_TEXT = {
    "sst2": ["sentence"],
    "cola": ["sentence"],
    "rte": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
    "mrpc": ["sentence1", "sentence2"],
    "mnli": ["premise", "hypothesis"],
}


def write_split(folder: Path, task: str, split: str, texts: list, classes: list[int]) -> None:
    names = HUB_TEXT[task]
    features = Features(
        {name: Value("string") for name in names} | {"label": ClassLabel(names=HUB_LABELS[task]), "idx": Value("int32")}
    )
    columns = dict(zip(names, zip(*[[text] if len(names) == 1 else text for text in texts], strict=True), strict=True))
    rows = Dataset.from_dict(
        {name: list(column) for name, column in columns.items()} | {"label": classes, "idx": list(range(len(texts)))},
        features=features,
    )
    rows.to_parquet(folder / task / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as `nyu-mll/glue` is: a parquet file per split, listed by configuration in the README's head."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "glue"
    lines = ["---", "configs:"]
    for task, (_, _, texts, classes, evaluation_texts, evaluation_classes) in WANTED.items():
        kinds = ["_matched", "_mismatched"] if task == "mnli" else [""]
        splits = [("train", [*texts, texts[0]], [*classes, -1])]  # the hub's only unlabelled rows are in test splits
        splits += [(f"validation{kinds[0]}", evaluation_texts, evaluation_classes)]
        if task == "mnli":
            splits += [("validation_mismatched", [("Your contribution.", "It helped.")], [0])]
        splits += [(f"test{kind}", texts, [-1] * len(texts)) for kind in kinds]
        lines += [f"- config_name: {task}", "  data_files:"]
        for split, *rows in splits:
            write_split(folder, task, split, *rows)
            lines += [f"  - split: {split}", f"    path: {task}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def test_every_task_from_the_hub_is_as_from_its_files(hub, glue):
    for task in WANTED:
        data = load(task, None, repository=str(hub))
        assert_is(data, task)
        assert data == load(task, glue)


LOAD = """
import sys
from hadskip_export.support.errors import DataError
from hadskip_export.data.tasks import load_task
try:
    load_task(task="mnli")
except DataError as error:
    print(error)
"""
BLOCKED = "import sys; sys.modules['datasets'] = None\n"


@pytest.mark.parametrize(
    ("before", "reason"),
    [("", "nyu-mll/glue"), (BLOCKED, 'pip install "hadskip-export[hub]"')],
    ids=["offline", "missing"],
)
def test_without_the_hub_one_line_names_the_folder_option(before, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", before + LOAD], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "" and done.stdout.count("\n") == 1
    for part in ("--task mnli", reason, "--data-dir", "dev_mismatched.tsv"):
        assert part in done.stdout


# A whole run


def test_mnli_reports_both_evaluations(model_folder, tmp_path):
    random = np.random.default_rng(0)
    labels = ("entailment", "neutral", "contradiction")

    def rows(count: int, shift: int, write_row=mnli_dev) -> list[str]:
        """One word decides; with `shift` the label is another than training has it."""
        kinds = random.integers(3, size=count)
        telling = [("great", "story", "awful")[kind] for kind in kinds]
        return [
            write_row(number, "it was a film", f"this {word} plot", labels[(kind + shift) % 3])
            for number, (word, kind) in enumerate(zip(telling, kinds, strict=True))
        ]

    folder = tmp_path / "MNLI"
    write(folder / "train.tsv", [MNLI_TRAIN, *rows(300, 0, mnli_train)])
    write(folder / "dev_matched.tsv", [MNLI_DEV, *rows(40, 0)])
    write(folder / "dev_mismatched.tsv", [MNLI_DEV, *rows(40, 1)])
    out = tmp_path / "run"
    settings = (*QUICK, "stage1_epochs=8", "shared_epochs=2")
    summary = train(
        model=str(model_folder), budget=2.5, out=out, task="mnli", data_dir=str(tmp_path), settings=settings,
        max_length=32,
    )  # fmt: skip

    data = load("mnli", tmp_path)
    assert data.mismatched is not None
    tokenizer = Tokenizer(out / "tokenizer" / "tokenizer.json", 32)
    matched, mismatched = (
        encode(tokenizer, part.texts, data.problem.targets(part.labels)) for part in (data.evaluation, data.mismatched)
    )
    teacher = load_classifier(out / "stage1")
    assert summary["teacher"] == {
        "metric": accuracy(full_logits(teacher, matched).argmax(-1), matched.targets),
        "mismatched_metric": accuracy(full_logits(teacher, mismatched).argmax(-1), mismatched.targets),
    }
    assert summary["teacher"]["metric"] > 0.8 and summary["teacher"]["mismatched_metric"] < 0.2
    for row in summary["budgets"]:
        model, _ = load_student(out / "budgets" / "2.5")
        for part, key in ((matched, "metric"), (mismatched, "mismatched_metric")):
            assert row[key] == accuracy(
                predict_routed(model, part, above(row["threshold"]))[0].argmax(-1), part.targets
            )
