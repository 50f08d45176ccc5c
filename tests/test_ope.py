import json
from pathlib import Path

import numpy as np
import pytest

from jaxrec import ope
from jaxrec.errors import UserError

# A bandit with 2 contexts (positions, equally likely) and 3 items, and what it earns.
MEAN = np.array([[0.1, 0.5, 0.9], [0.6, 0.2, 0.3]])
LOGGING = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
POLICY = np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]])
VALUE = (MEAN * POLICY).sum(1).mean()
WRONG = np.array([[0.4, 0.4, 0.2], [0.1, 0.5, 0.5]])  # a poor reward model


def draw(rows: int, seed: int) -> ope.Log:
    generator = np.random.default_rng(seed)
    position = generator.integers(2, size=rows)
    uniform = generator.random(rows)[:, None]
    item = (uniform > LOGGING.cumsum(1)[position]).sum(1)
    reward = (generator.random(rows) < MEAN[position, item]).astype(float)
    return ope.Log(item, position, reward, LOGGING[position, item])


def estimates(log: ope.Log, model: np.ndarray = WRONG, **settings) -> dict:
    v = (POLICY * model).sum(1)[log.position]
    q = model[log.position, log.item]
    return ope.estimate(log.reward, ope.weights(POLICY, log), q, v, **settings)


@pytest.fixture(scope="module")
def many() -> dict[str, np.ndarray]:
    """[value, low, high] of 300 logs of 200 rows, by estimator."""
    found = [estimates(draw(200, seed), clip=2.0, switch=2.0) for seed in range(300)]
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def test_values_worked_by_hand():
    reward, weight = np.array([1.0, 0.0, 1.0]), np.array([2.0, 0.5, 4.0])
    q, v = np.array([0.5, 0.2, 0.25]), np.array([0.3, 0.6, 0.9])
    found = ope.estimate(reward, weight, q, v, clip=3.0, switch=2.0)
    expected = dict(
        ips=6 / 3,
        clipped=5 / 3,
        snips=6 / 6.5,
        dm=0.6,
        dr=0.6 + (2 * 0.5 - 0.5 * 0.2 + 4 * 0.75) / 3,
        sndr=0.6 + (2 * 0.5 - 0.5 * 0.2 + 4 * 0.75) / 6.5,
        switch_dr=0.6 + (2 * 0.5 - 0.5 * 0.2) / 3,
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value), name
    assert ope.estimate(reward, weight).keys() == {"ips", "clipped", "snips"}


@pytest.mark.parametrize("name", ["ips", "dr"])
def test_unbiased_whatever_the_model(many, name):
    values = many[name][:, 0]
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - VALUE) < 3.5 * error < 0.03


@pytest.mark.parametrize("name", ["snips", "sndr"])
def test_self_normalised_is_nearly_unbiased(many, name):
    assert many[name][:, 0].mean() == pytest.approx(VALUE, abs=0.02)


@pytest.mark.parametrize("name", ["dm", "clipped", "switch_dr"])
def test_the_biased_ones_are_biased_here(many, name):
    values = many[name][:, 0]
    assert abs(values.mean() - VALUE) > 10 * values.std() / np.sqrt(len(values))


def test_variance_falls_in_the_expected_order(many):
    """Normalising, and a bound on the weights, are there to lower the variance."""
    spread = {name: values[:, 0].std() for name, values in many.items()}
    assert spread["snips"] < spread["ips"] and spread["clipped"] < spread["ips"]
    assert spread["switch_dr"] < spread["dr"]


@pytest.mark.parametrize("name", ["ips", "snips", "dr", "sndr"])
def test_intervals_cover_the_value(many, name):
    _, low, high = many[name].T
    covered = ((low <= VALUE) & (high >= VALUE)).mean()
    assert 0.88 < covered < 0.99


def test_a_true_model_leaves_dr_no_error_but_the_noise():
    log = draw(200, 0)
    log = log._replace(reward=MEAN[log.position, log.item])
    found = estimates(log, MEAN)
    assert found["dr"].value == pytest.approx(found["dm"].value)
    assert found["dr"].high - found["dr"].low < 0.2 * (
        found["ips"].high - found["ips"].low
    )


def test_limits_of_clip_and_switch():
    log = draw(500, 1)
    found = estimates(log, clip=1e9, switch=1e9)
    assert found["clipped"] == found["ips"] and found["switch_dr"] == found["dr"]
    assert estimates(log, switch=0.0)["switch_dr"].value == found["dm"].value
    zero = estimates(log, np.zeros_like(MEAN))
    assert zero["dr"] == zero["ips"] and zero["sndr"] == zero["snips"]


def test_normalised_ones_do_not_see_the_scale_of_propensities():
    log = draw(300, 2)
    plain = estimates(log)
    scaled = estimates(log._replace(propensity=log.propensity / 3))
    for name in ("snips", "sndr", "dm"):
        assert scaled[name].value == pytest.approx(plain[name].value), name
    assert scaled["ips"].value == pytest.approx(3 * plain["ips"].value)


def test_support():
    found = ope.support(np.array([1.0, 1.0, 2.0]))
    assert found["effective_rows"] == pytest.approx(16 / 6)
    assert found["max_weight"] == 2.0 and found["mean_weight"] == pytest.approx(4 / 3)
    assert ope.support(np.ones(7))["effective_rows"] == pytest.approx(7)
    assert ope.support(np.zeros(7))["effective_rows"] == 0.0


def test_ridge_against_augmented_least_squares():
    log = draw(60, 3)
    x = np.concatenate([np.eye(3)[log.item], np.eye(2)[log.position]], 1)
    y = log.reward - log.reward.mean()
    full = np.concatenate([x, np.sqrt(4.0) * np.eye(5)])
    u = np.linalg.lstsq(full, np.concatenate([y, np.zeros(5)]), rcond=None)[0]
    table = log.reward.mean() + u[None, :3] + u[3:, None]
    found = ope.ridge(log, 3, 2, l2=4.0, folds=1)
    np.testing.assert_allclose(found, table[log.position])


def test_rewards_of_a_fold_do_not_predict_themselves():
    log = draw(60, 4)
    before = ope.ridge(log, 3, 2)
    for row in range(0, 60, 7):
        reward = log.reward.copy()
        reward[row] += 100.0
        after = ope.ridge(log._replace(reward=reward), 3, 2)
        np.testing.assert_array_equal(after[row], before[row])
        assert not np.allclose(after, before)


def test_ridge_learns_the_rewards():
    """Additive rewards are within the model."""
    position, item = np.repeat([0, 1], 3000), np.tile([0, 1, 2], 2000)
    reward = 0.2 + 0.1 * item + 0.3 * position
    log = ope.Log(item, position, reward, np.full(6000, 1 / 3))
    q = ope.ridge(log, 3, 2)
    assert abs(q[np.arange(6000), item] - reward).max() < 0.01


def test_random_log_under_its_own_policy(shared_data):
    log = ope.load(shared_data / "openbandit" / "random" / "all.csv")
    assert len(log.item) == 10_000 and log.position.max() == 2
    policy = ope.uniform(log, 80)
    np.testing.assert_allclose(ope.weights(policy, log), 1.0)
    found = ope.evaluate(log, policy)
    for name in ("ips", "snips", "clipped"):
        assert found[name].value == pytest.approx(log.reward.mean())
    assert found["ips"].value == pytest.approx(0.0038)
    assert found["dr"].low < 0.0038 < found["dr"].high


@pytest.mark.parametrize("log, policy", [("random", "bts"), ("bts", "random")])
def test_open_bandit_across_policies(shared_data, capsys, log, policy):
    folder = str(shared_data / "openbandit")
    argv = [f"--data={folder}", f"--log={log}", f"--policy={policy}", "--json"]
    assert ope.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    estimates, support = found["estimates"], found["support"]
    truth = estimates["on_policy"]["value"]
    assert truth == pytest.approx(0.0042 if policy == "bts" else 0.0038)
    for name in ("ips", "snips", "dr", "sndr", "switch_dr"):
        assert estimates[name]["low"] < truth < estimates[name]["high"], name
        assert 0 < estimates[name]["value"] < 0.01
    assert 100 < support["effective_rows"] < 10_000
    # Shares sum to 1 over the items, so that the weights have the mean 1.
    assert support["mean_weight"] == pytest.approx(1.0, abs=0.06)


HEAD = ",timestamp,item_id,position,click,propensity_score\n"


def write(folder: Path, text: str, name: str = "random") -> Path:
    (folder / name).mkdir(exist_ok=True)
    path = folder / name / "all.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text, message",
    [
        ("item_id,position,click\n0,1,0\n", "no column 'propensity_score', found item"),
        (HEAD + "0,t,3,1,0,0.5\n1,t,3,1,x,0.5\n", r"line 3: .*'x'"),
        (HEAD + "0,t,3,1,0,0\n", r"line 2: .*propensity in \(0, 1\]"),
        (HEAD + "0,t,3,1,0,nan\n", "line 2"),
        (HEAD + "0,t,3,1,nan,0.5\n", "line 2: .*'nan'"),
        (HEAD + "0,t,3,1\n", "line 2: .*None"),
        (HEAD, "no rows"),
        ("", "no column 'item_id'"),
    ],
)
def test_bad_logs_end_in_one_line(tmp_path, capsys, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message):
        ope.load(path)
    assert ope.main([f"--data={tmp_path}", "--policy=random"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxrec: error:") and error.count("\n") == 1


def test_an_absent_folder_is_named(tmp_path, capsys):
    assert ope.main([f"--data={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_table_of_a_small_log(tmp_path, capsys):
    write(tmp_path, HEAD + "0,t,0,1,1,0.5\n1,t,1,1,0,0.5\n")
    write(tmp_path, HEAD + "0,t,0,1,1,0.9\n1,t,0,1,1,0.9\n", "bts")
    assert ope.main([f"--data={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The policy shows item 0 alone: weights 2 and 0.
    assert "effective_rows=1" in lines[0] and "max_weight=2" in lines[0]
    assert [float(line.split()[1]) for line in lines if "ips" in line] == [1.0, 1.0]


def test_weights_that_are_no_weights():
    for weight in (np.array([1.0, -1.0]), np.array([1.0, np.inf]), np.ones(3)):
        with pytest.raises(ValueError, match="finite numbers >= 0"):
            ope.estimate(np.ones(2), weight)
