"""Histories of trainings as other programs leave them: one training of six epochs in many formats."""

import io
import json
import math
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import compare
from cli.errors import BadInput
from comparing import histories

LOSS, ACCURACY = [1.71, 1.38, 1.22, 1.11, 1.02, 0.94], [0.38, 0.5, 0.56, 0.6, 0.64, 0.67]
VAL_LOSS, VAL_ACCURACY = [1.42, 1.26, 1.17, 1.09, 1.12, 1.15], [0.49, 0.55, 0.58, 0.62, 0.61, 0.6]
RATE, EPOCH = [0.001] * 4 + [0.0005] * 2, [*range(6)]
PER_CENT = [100 * accuracy for accuracy in VAL_ACCURACY]
TIMES = [f"2026-01-05 10:0{minute}:00" for minute in EPOCH]
BARE = {"loss": LOSS, "accuracy": ACCURACY, "val_loss": VAL_LOSS, "val_accuracy": VAL_ACCURACY}
FULL = BARE | {"learning_rate": RATE}
SECOND = [math.nan, 1.26, math.nan, 1.09, math.nan, 1.15], [math.nan, 0.55, math.nan, 0.62, math.nan, 0.6]
CUTS = [4]  # the epochs after which the rate is cut


def csv(columns, separator=",", end="\r\n", epoch="epoch"):
    """The text of a CSV file, in Keras's order of columns."""
    columns = ({epoch: EPOCH} if epoch is not None else {}) | columns
    rows = [columns, *zip(*columns.values(), strict=True)]
    return "".join(separator.join(map(str, row)) + end for row in rows)


def missing(values):
    return ["NA" if isinstance(value, float) and math.isnan(value) else value for value in values]


def records(columns, **names):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def lightning():
    lines = ["epoch,step,train_loss_epoch,train_acc_epoch,val_loss,val_acc,lr-Adam"]
    for epoch, loss, accuracy, val_loss, val_accuracy, rate in zip(EPOCH, *FULL.values(), strict=True):
        lines += [f"{epoch},{625 * epoch},,,,,{rate}", f"{epoch},{625 * epoch + 624},,,{val_loss},{val_accuracy},"]
        lines += [f"{epoch},{625 * epoch + 624},{loss},{accuracy},,,"]
    return "\n".join([*lines, ""])


def hugging_face():
    log = []
    for epoch, (loss, _, val_loss, val_accuracy, rate) in enumerate(zip(*FULL.values(), strict=True), start=1):
        log.append({"epoch": float(epoch), "learning_rate": rate, "loss": loss, "step": 625 * epoch})
        evaluated = {"eval_accuracy": val_accuracy, "eval_loss": val_loss, "eval_runtime": 2.1}
        log.append({"epoch": float(epoch), **evaluated, "step": 625 * epoch})
    # What Trainer.train() adds at its end has a loss of its own: the mean of all epochs.
    log.append({"epoch": 6.0, "train_loss": 1.23, "train_runtime": 60.0, "step": 3750})
    return {"best_metric": 0.62, "epoch": 6.0, "global_step": 3750, "log_history": log}


def hugging_face_by_pandas():
    """What pandas.DataFrame(trainer.state.log_history).to_csv() gives."""
    log = hugging_face()["log_history"]
    names = dict.fromkeys(name for row in log for name in row)
    rows = [["", *names], *([number, *(row.get(name, "") for name in names)] for number, row in enumerate(log))]
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def without(columns, *names):
    return {name: values for name, values in columns.items() if name not in names}


def renamed(columns, **names):
    return {names.get(name, name): values for name, values in columns.items()}


ACC = {"accuracy": "acc", "val_accuracy": "val_acc", "learning_rate": "lr"}
SPARSE = {"accuracy": "sparse_categorical_accuracy", "val_accuracy": "val_sparse_categorical_accuracy"}
CATEGORICAL = {"accuracy": "categorical_accuracy", "val_accuracy": "val_categorical_accuracy"}
EVERY_SECOND = BARE | {"val_loss": missing(SECOND[0]), "val_accuracy": missing(SECOND[1])}
FASTAI = {"train_loss": LOSS, "valid_loss": VAL_LOSS, "accuracy": VAL_ACCURACY, "time": ["00:17"] * 6}
TIMM = {"train_loss": LOSS, "eval_loss": VAL_LOSS, "eval_top1": PER_CENT, "eval_top5": [96.5] * 6, "lr": RATE}

# name: content, what is read from it, and words of the line that says how it was read
FORMS = {
    "keras3.csv": (csv(FULL), FULL, "CSV: loss, accuracy, val_loss, val_accuracy, learning_rate"),
    "keras_history.json": (json.dumps(FULL), FULL, "Keras's history in JSON: loss,"),
    "keras1_acc.csv": (csv(renamed(FULL, **ACC)), FULL, "accuracy from 'acc'"),
    "categorical_accuracy.csv": (csv(renamed(BARE, **CATEGORICAL)), BARE, "accuracy from 'categorical_accuracy'"),
    "sparse_categorical_accuracy.csv": (csv(renamed(FULL, **SPARSE)), FULL, "from 'sparse_categorical_accuracy'"),
    "semicolons.csv": (csv(BARE, ";"), BARE, "CSV separated by ';': loss"),
    "tabs.csv": (csv(BARE, "\t"), BARE, "CSV separated by '\\t': loss"),
    "na_rows.csv": (csv(EVERY_SECOND), BARE | dict(zip(("val_loss", "val_accuracy"), SECOND, strict=True)), "CSV"),
    "validation_freq_2.json": (
        json.dumps(BARE | {"val_loss": [1.26, 1.09, 1.15], "val_accuracy": [0.55, 0.62, 0.6]}),
        BARE | dict(zip(("val_loss", "val_accuracy"), SECOND, strict=True)),
        "Keras's history in JSON",
    ),
    "bom_and_blanks.csv": ("\ufeff" + csv(BARE, ", ", epoch=None), BARE, "CSV: loss,"),
    "blank_line_at_end.csv": (csv(FULL) + "\r\n", FULL, "CSV"),
    "doubled_line_ends.csv": (csv(FULL, end="\r\r\n"), FULL, "CSV"),
    "with_time_column.csv": (csv(BARE | {"time": TIMES}), BARE, "; left out: 'time'"),
    "pandas_to_csv.csv": (csv(FULL, epoch=""), FULL, "CSV: loss, accuracy"),
    "pandas_to_json.json": (
        json.dumps({name: dict(enumerate(values)) for name, values in FULL.items()}),
        FULL,
        "pandas's to_json(): loss",
    ),
    "pandas_records.json": (json.dumps(records(FULL)), FULL, "JSON records: loss"),
    "train_loss.json": (
        json.dumps({"train_loss": LOSS, "train_acc": ACCURACY, "val_loss": VAL_LOSS, "val_acc": VAL_ACCURACY}),
        BARE,
        "loss from 'train_loss', accuracy from 'train_acc'",
    ),
    "lightning_metrics.csv": (lightning(), FULL, "Lightning's CSV: loss from 'train_loss_epoch'"),
    "timm_summary.csv": (csv(TIMM), without(FULL, "accuracy"), "val_accuracy from 'eval_top1' in per cent"),
    "fastai_history.csv": (csv(FASTAI), without(BARE, "accuracy"), "val_accuracy from 'accuracy'; left out: 'time'"),
    "hf_trainer_state.json": (
        json.dumps(hugging_face()),
        without(FULL, "accuracy"),
        "Hugging Face's log_history: loss",
    ),
    "hf_log_history.json": (
        json.dumps(hugging_face()["log_history"]),
        without(FULL, "accuracy"),
        "Hugging Face's log_history: loss",
    ),
    "hf_log_history.csv": (
        hugging_face_by_pandas(),
        without(FULL, "accuracy"),
        "Hugging Face's log_history: loss",
    ),
    "excel_sep.csv": ("sep=;\n" + csv(FULL, ";"), FULL, "CSV separated by ';'"),
}


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return histories.read(path)


@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_history_is_read_correctly_and_reported_by_name(name, tmp_path, capsys):
    content, expected, said = FORMS[name]
    run = read(tmp_path, name, content)
    assert run.history.keys() == expected.keys()
    for column, values in expected.items():
        np.testing.assert_allclose(run.history[column], values, rtol=1e-15, err_msg=column)
    assert said in run.form
    # And the figures that compare.py makes of it.
    assert compare.main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 0
    (group,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["groups"].values()
    found = group["runs"][0]
    assert (found["epochs"], found["best epoch"], found["best val_loss"]) == (6, 4, 1.09)
    assert found["val_accuracy there"] == pytest.approx(0.62)
    assert found["cut after epochs"] == (CUTS if "learning_rate" in expected else None)
    assert capsys.readouterr().err.splitlines()[0] == f"{tmp_path / name}: {run.form}"


def test_a_form_is_reported_once_for_a_group_and_remarks_for_each_file(tmp_path, capsys):
    for number in range(3):
        (tmp_path / f"a{number}.csv").write_text(csv(FULL).replace("1.71", f"1.7{number}"))
    (tmp_path / "a3.csv").write_text(csv(renamed(FULL, **ACC)).replace("1.71", "1.73").rstrip("\r\n"))
    assert compare.main([f"a={tmp_path}/a*.csv", "--out", str(tmp_path)]) == 0
    one, other, remark = capsys.readouterr().err.splitlines()
    assert one.startswith("a, 3 files: CSV: loss, accuracy")
    assert other.startswith("a: CSV: loss, accuracy from 'acc'")
    assert remark == f"{tmp_path}/a3.csv: its last row has no line end: its last figure may be cut off"


@pytest.mark.parametrize(
    ("name", "content", "epochs", "remark"),
    [
        ("cut_off.csv", csv(FULL)[:-9], 5, "its last row is cut off and left out"),
        ("no_end.csv", csv(FULL)[:-2], 6, "its last row has no line end"),
        ("late.csv", csv(FULL | {"epoch": range(10, 16)}), 6, "it starts with epoch 10, which is counted as the first"),
        ("spread.json", json.dumps(BARE | {"val_loss": [1.2, 1.1], "val_accuracy": [0.5, 0.6]}), 6, "every 3 epochs"),
    ],
)
def test_oddities_that_affect_the_figures_are_remarked_on(name, content, epochs, remark, tmp_path):
    run = read(tmp_path, name, content)
    assert run.epochs == epochs
    (said,) = run.remarks
    assert remark in said


TWO_FITS = csv(FULL).replace("\r\n3,", "\r\n0,").replace("\r\n4,", "\r\n1,").replace("\r\n5,", "\r\n2,")
HEADER, *ROWS = csv(BARE).splitlines(keepends=True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("two_fits_appended.csv", TWO_FITS, ["counter goes from 2 to 0 in row 4", "in a file of its own"]),
        ("capitals.csv", "Epoch,Loss\n1,2.3\n2,2.2\n1,1.3\n", ["counter goes from 2 to 1"]),
        ("header_repeated.csv", HEADER + "".join(ROWS[:3]) + HEADER + "".join(ROWS[:3]), ["header comes twice"]),
        ("skipped.csv", HEADER + ROWS[0] + ROWS[5], ["counter goes from 0 to 5"]),
        ("index_restarts.csv", ",loss\n0,3.0\n1,2.0\n0,1.0\n", ["counter goes from 1 to 0"]),  # pandas's index
        ("records.json", json.dumps(records({"epoch": [0, 1, 0], "loss": [3, 2, 1]})), ["goes from 1 to 0 in row 3"]),
        ("restarts.csv", "epoch,step,val_loss\n0,1,2.0\n1,2,1.5\n0,3,1.2\n", ["goes from 1 back to 0"]),
        ("tensorboard.csv", "Wall time,Step,Value\n1.7e9,0,1.42\n", ["found 'Wall time', 'Step', 'Value'", "pass the"]),
        ("acc_twice.csv", csv(BARE | {"acc": ACCURACY}), ["'accuracy' and 'acc' could each be its accuracy; keep one"]),
        ("loss_twice.json", json.dumps({"loss": LOSS, "train_loss": LOSS}), ["'loss' and 'train_loss'"]),
        ("rates.csv", csv(BARE | {"lr-Adam": RATE, "lr": RATE}), ["'lr-Adam' and 'lr'"]),
        ("same_name.csv", csv(BARE).replace("val_loss", "loss"), ["a name twice"]),
        ("same_name.json", '{"loss": [1.0], "loss": [2.0]}', ["a name twice in one object"]),
        ("text.json", '{"loss": "123"}', ["found an object: 'loss'"]),
        ("nested.json", '{"loss": {"a": 1.0, "b": 0.5}}', ["found an object: 'loss'"]),
        ("index.json", json.dumps({str(n): row for n, row in enumerate(records(BARE))}), ["found an object: '0'"]),
        ("holes.json", '{"loss": {"0": 1.0, "2": 0.5}}', ["found an object"]),
        ("bools.json", '{"loss": [true, false]}', ["column 'loss' is not all numbers"]),
        ("lists.json", '{"loss": [[1.0], [0.5]]}', ["column 'loss' is not all numbers"]),
        ("decimal_commas.csv", "epoch;loss\n0;1,71\n1;1,38\n", ["'1,71'", "; write a decimal point, not a comma"]),
        ("signs.csv", "epoch,loss,accuracy\n0,1.7,35.0%\n", ["column 'accuracy'", "; leave the % out"]),
        (
            "by_str.json",
            str(BARE),
            ["a Python dict as text, which is not JSON; write it with json.dump(history.history"],
        ),
        ("two_kinds.csv", "epoch,loss;val_loss\n0,1;2\n", ["more than one kind of separator"]),
        ("uneven.json", json.dumps(FULL | {"val_loss": VAL_LOSS[:5]}), ["the same number of values in each column"]),
        ("ambiguous.json", json.dumps(BARE | {"val_loss": [1.1], "val_accuracy": [0.6]}), ["same number of values"]),
        ("mixed_units.csv", csv(BARE | {"val_accuracy": PER_CENT}), ["one of its accuracies is in per cent"]),
        ("beyond.csv", csv(BARE | {"accuracy": [138.0] * 6}), ["its accuracy goes from 138 to 138"]),
        ("only_time.json", json.dumps({"time": LOSS}), ["found 'time', no loss and no val_loss"]),
        ("by_step.json", '{"log_history": [{"epoch": 0.5, "loss": 1.0}]}', ["nothing by whole epochs"]),
    ],
)
def test_a_file_that_is_not_one_readable_training_is_refused_in_one_line(name, content, words, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    assert compare.main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert name in line
    assert [word for word in words if word not in line] == []
    assert printed.out == ""


HISTORY = {"loss": [np.float32(1.5), np.float32(1.25)], "val_loss": [1.5, 1.125]}


def saved_by_numpy():
    buffer = io.BytesIO()
    np.save(buffer, np.array(HISTORY), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("history.pkl", pickle.dumps(HISTORY)),
        ("history.pickle", pickle.dumps(HISTORY, protocol=0)),
        ("history", pickle.dumps(HISTORY)),
        ("history.npy", saved_by_numpy()),
        ("history.json", saved_by_numpy()),
    ],
)
def test_a_pickle_is_never_opened_and_the_line_that_turns_it_into_json_works(name, content, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pickle, "load", None)
        patch.setattr(pickle, "loads", None)
        patch.setattr(np, "load", None)
        with pytest.raises(BadInput, match="a pickle, which is not opened") as refused:
            read(tmp_path, name, content)
    line = str(refused.value).partition("convert it to JSON: ")[2]
    monkeypatch.chdir(tmp_path)
    exec(line)  # what the user is told to run
    (made,) = (path for path in tmp_path.glob("*.json") if path.read_bytes() != content)
    assert histories.read(made).history == {"loss": [1.5, 1.25], "val_loss": [1.5, 1.125]}


def test_a_history_may_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        pool.submit((tmp_path / "pipe").write_text, csv(FULL))
        assert histories.read(tmp_path / "pipe").history == FULL


def test_a_directory_with_one_history_in_it_counts_as_that_file(tmp_path):
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0" / "hparams.yaml").write_text("lr: 0.001")
    (tmp_path / "version_0" / "tokenizer.json").write_text('{"model": {}}')
    read(tmp_path, "version_0/metrics.csv", lightning())
    run = histories.read(tmp_path / "version_0")
    assert run.path == str(tmp_path / "version_0")
    assert run.history == FULL


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no training history"),
        (["a.csv", "b.csv"], r"several training histories \(a.csv, b.csv\)"),
        (["metrics.json", "config.json"], "no training history"),
        (["a.pkl"], "a.pkl: a pickle, which is not opened"),
    ],
)
def test_a_directory_without_exactly_one_history_is_refused_with_the_reason(names, words, tmp_path):
    for name in names:
        (tmp_path / name).write_text(csv(FULL))
    with pytest.raises(BadInput, match=words):
        histories.read(tmp_path)


def test_lightning_rows_without_an_epoch_belong_to_the_next_one_and_its_first_rate_counts(tmp_path):
    header = "epoch,step,val_loss,train_loss,lr-SGD\n"
    text = ",0,,,0.1\n,3,,,0.08\n0,5,2.0,,\n0,5,,2.5,\n,6,,,0.05\n1,9,1.0,,\n1,9,,1.5,\n"
    assert read(tmp_path, "metrics.csv", header + text).history == {
        "loss": [2.5, 1.5],
        "val_loss": [2.0, 1.0],
        "learning_rate": [0.1, 0.05],
    }


def test_rows_that_count_steps_are_read_as_epochs_with_a_remark(tmp_path):
    run = read(tmp_path, "log.csv", csv(BARE, epoch="step"))
    assert run.remarks == ["it counts 'step' and no epochs: each of its 6 rows is taken as an epoch"]


def test_a_val_loss_that_ends_before_the_loss_is_remarked_on(tmp_path):
    run = read(tmp_path, "log.csv", csv(BARE | {"val_loss": [1.4, 1.3, *["nan"] * 4]}))
    assert run.remarks == ["no finite val_loss after epoch 2, so no later epoch can be the best"]
    run = read(tmp_path, "log.csv", csv(BARE | {"val_loss": [1.4, "", 1.3, "", 1.2, ""]}))
    assert run.remarks == []


def test_text_in_another_encoding_is_refused_with_the_advice_to_save_it_as_utf_8(tmp_path):
    (tmp_path / "excel.csv").write_bytes(csv(BARE).encode("utf-16"))
    with pytest.raises(BadInput, match="not a text file in UTF-8; if it is one, save it as UTF-8"):
        histories.read(tmp_path / "excel.csv")


def test_figures_logged_by_step_are_left_out_with_a_remark(tmp_path):
    text = "epoch,step,train_loss,val_loss,test_acc\n0,1,2.5,,\n0,2,2.4,,\n0,2,,2.0,\n1,3,2.3,,\n1,4,,1.0,\n2,4,,,0.7\n"
    run = read(tmp_path, "metrics.csv", text)
    assert run.history == {"val_loss": [2.0, 1.0]}
    assert run.remarks == ["logged by step and so left out: 'train_loss'"]
    log = [{"epoch": 0.8, "loss": 2.0, "learning_rate": 0.1}, {"epoch": 1.0, "eval_loss": 1.5}]
    run = read(tmp_path, "trainer_state.json", json.dumps({"log_history": log}))
    assert run.history == {"val_loss": [1.5]}
    assert run.remarks == ["logged by step and so left out: 'learning_rate', 'loss'"]


def test_an_accuracy_beside_train_loss_is_left_out_unless_the_form_is_that_of_fastai(tmp_path):
    run = read(tmp_path, "h.json", json.dumps({"train_loss": LOSS, "val_loss": VAL_LOSS, "accuracy": ACCURACY}))
    assert run.history == {"loss": LOSS, "val_loss": VAL_LOSS}
    assert "left out: 'accuracy'" in run.form


def test_the_directory_of_a_run_is_read_with_its_metrics_and_config(tmp_path):
    own, config = {"test_accuracy": 0.5}, {"flags": {}, "data_sha256": "a"}
    (tmp_path / "metrics.json").write_text(json.dumps(own))
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = read(tmp_path, "history.csv", csv(FULL))
    assert (run.metrics, run.config) == ({}, {})  # the bare file
    run = histories.read(tmp_path)
    assert (run.metrics, run.config) == (own, config)


@pytest.mark.parametrize("metrics", [{"accuracy": 0.71, "epochs": 50}, {"seed": 42.0, "model": {"name": "x"}}])
def test_metrics_of_another_program_beside_a_history_are_remarked_on_and_not_used(metrics, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "config.json").write_text('{"data": "NOT CIFAR-10"}')
    (tmp_path / "history.csv").write_text(csv(FULL))
    run = histories.read(tmp_path)
    assert (run.history, run.metrics, run.config) == (FULL, {}, {})
    assert run.remarks == ["its metrics.json is another program's, and is ignored"]


def lines(columns):
    return "".join(
        json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True)
    )


def npz(columns):
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", lines(FULL)),
        ("log.jsonl", lines(FULL)),
        ("log.txt", lines(FULL)),
        ("nested.json", json.dumps({"params": {"epochs": 6}, "epoch": list(range(6)), "history": FULL})),
        ("history.npz", npz(FULL)),
        ("training.log", csv(FULL)),
        ("wandb.csv", csv({f"epoch/{name}": cells for name, cells in FULL.items()})),
    ],
)
def test_other_common_forms_of_history_are_read(name, content, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert histories.read(tmp_path).history == FULL


def test_figures_called_test_are_used_as_validation_where_there_is_none_with_a_remark(tmp_path):
    run = read(tmp_path, "log.txt", lines({"train_loss": LOSS, "test_loss": VAL_LOSS, "test_acc1": PER_CENT}))
    assert run.history["val_loss"] == VAL_LOSS
    assert run.history["val_accuracy"] == pytest.approx([value / 100 for value in PER_CENT])
    assert run.remarks == ["'test_loss' is used as val_loss", "'test_acc1' is used as val_accuracy"]
    both = read(tmp_path, "b.json", json.dumps({"loss": LOSS, "val_loss": VAL_LOSS, "test_loss": LOSS}))
    assert both.history == {"loss": LOSS, "val_loss": VAL_LOSS}


def test_top1_of_timm_is_read_as_per_cent_however_low(tmp_path):
    run = read(
        tmp_path, "summary.csv", "epoch,train_loss,eval_loss,eval_top1,lr\n0,6.9,6.8,0.3,0.1\n1,6.8,6.7,0.6,0.1\n"
    )
    assert run.history["val_accuracy"] == pytest.approx([0.003, 0.006])
    assert "val_accuracy from 'eval_top1' in per cent" in run.form


def test_an_accuracy_that_float32_rounded_above_1_is_not_read_as_per_cent(tmp_path):
    run = read(tmp_path, "h.csv", "epoch,val_accuracy,val_loss\n0,0.99,1.6\n1,1.0000001192092896,1.3\n")
    assert run.history["val_accuracy"] == [0.99, 1.0]


def test_the_epoch_counter_of_records_is_checked_under_another_spelling_too(tmp_path):
    rows = [{"Epoch": epoch, "loss": 1.0} for epoch in (1, 9, 1)]
    with pytest.raises(BadInput, match="its epoch counter goes from 1 to 9"):
        read(tmp_path, "h.json", json.dumps(rows))


def test_a_lightning_loss_logged_before_the_last_step_of_an_epoch_is_left_out(tmp_path):
    text = "epoch,step,train_loss,val_acc,val_loss\n0,49,9.99,,\n0,62,,0.4,1.6\n1,99,8.88,,\n1,125,,0.5,1.3\n"
    run = read(tmp_path, "metrics.csv", text)
    assert run.history == {"val_loss": [1.6, 1.3], "val_accuracy": [0.4, 0.5]}
    assert run.remarks == ["logged by step and so left out: 'train_loss'"]


def test_hugging_face_evaluations_count_as_epochs_even_at_fractions_of_one(tmp_path):
    log = [{"eval_loss": loss, "epoch": epoch} for loss, epoch in ((1.5, 0.98), (1.2, 1.97), (1.1, 3.0))]
    run = read(tmp_path, "trainer_state.json", json.dumps({"log_history": log}))
    assert run.history == {"val_loss": [1.5, 1.2, 1.1]}
