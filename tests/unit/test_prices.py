"""Lists of prices: those that ship, a user's own files, SkyPilot's format, and the profiles of each."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.dataset import merge, published
from llmpilot.errors import ConfigError
from llmpilot.prices import KnownType, shipped
from llmpilot.prices.price_list import with_shares
from llmpilot.recommendation.prices import profiles_at

AWS_VMS = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region
c5.large,,,2,4,,0.085,0.03,us-east-1
g6.xlarge,L4,1.0,4,16,,0.8048,0.4,us-east-1
g6.2xlarge,L4,1.0,8,32,,0.9776,0.3,us-east-1
g6.xlarge,L4,1.0,4,16,,0.9,0.2,eu-west-1
g6.12xlarge,L4,4.0,48,192,,4.6016,,us-east-1
g5.xlarge,A10G,1.0,4,16,,1.006,0.5,us-east-1
p5.48xlarge,H100,8.0,192,2048,,55.04,20.0,us-east-1
1x_H100_SECURE,H100,1.0,16,176,"{'Gpus': [{'Name': 'H100 PCIe'}]}",2.89,2.89,us-east-1
dl1.24xlarge,Gaudi HL-205,8.0,96,768,,13.1,4.0,us-east-1
trn1.2xlarge,Trainium,1,8,32,,1.34,0.4,us-east-1
"""

# --- the lists that ship ---------------------------------------------------------------------------------


def test_every_list_says_whose_it_is_and_of_when() -> None:
    assert {"aws", "runpod", "verda_spot", "paper"} == set(shipped())
    for name in shipped():
        found = catalog.price_list(name)
        assert found.currency == "USD"
        assert found.licence
        assert found.date[:4] in ("2023", "2026")
        assert found.date in found.label
        assert found.provider in found.label
        assert json.loads(json.dumps(found.to_dict()))["source"] == found.source
        assert set(found.options) <= set(catalog.options("gpu"))
    assert catalog.price_list("verda_spot").kind == "spot"
    assert len(catalog.price_list().options) >= max(
        len(catalog.price_list(name).options) for name in shipped()
    )


@pytest.mark.parametrize("name", shipped())
def test_more_gpus_of_a_type_cost_more(name: str) -> None:
    found = catalog.price_list(name)
    for option in found.options:
        prices = list(found.of(option).values())
        assert prices == sorted(set(prices))
        assert all(price > 0 for price in prices)


def test_a_pod_with_fewer_gpus_than_are_sold_costs_its_share() -> None:
    aws = catalog.price_list("aws")
    assert aws.price("h200", 2) == pytest.approx(63.296 / 4)
    assert ("h200", 2) in aws.shares
    assert aws.price("h100", 1) == 6.88  # p5.4xlarge, no share
    assert aws.price("l4", 2) == pytest.approx(4.6016 / 2)  # of the smallest larger one, not of eight
    assert aws.price("mi300x", 8) is None
    assert catalog.price_list("runpod").price("b300", 4) is None  # nothing beyond what is sold


@given(st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.floats(0.1, 100.0), max_size=4))
def test_shares_never_touch_what_is_sold(sold: dict[int, float]) -> None:
    listed = {("x", count): price for count, price in sold.items()}
    prices, shares = with_shares(listed, {"x": KnownType("X", (1, 2, 4, 8))})
    assert all(prices[profile] == price for profile, price in listed.items())
    assert shares == prices.keys() - listed.keys()
    for _, count in shares:
        larger = min(one for one in sold if one > count)
        assert prices["x", count] == pytest.approx(sold[larger] * count / larger)
    assert {count for _, count in prices} == {n for n in (1, 2, 4, 8) if sold and n <= max(sold)}


# --- the profiles that a list makes ----------------------------------------------------------------------


def test_the_profiles_are_those_of_one_list(capsys: pytest.CaptureFixture[str]) -> None:
    for name in shipped():
        prices = catalog.price_list(name)
        profiles = profiles_at(name)
        assert len(profiles) == len(prices.prices)
        assert {profile.price_source for profile in profiles} == {prices.label}
    assert "without a price in runpod: a10, a100, gb200" in capsys.readouterr().err
    assert profiles_at(None, ["t4", "t4"]) == catalog.gpu_profiles(["t4"])
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        profiles_at(None, ["h10"])
    with pytest.raises(ConfigError, match="no GPU type is left"):
        profiles_at(None, [])
    with pytest.raises(
        ConfigError, match=r"no price of mi300x is known[\s\S]*prices=aws[\s\S]*prices=runpod"
    ):
        profiles_at("aws", ["mi300x"])


def test_measurements_are_judged_at_one_list_and_the_papers_at_the_papers() -> None:
    paper = catalog.price_list("paper")
    for data in (published(), merge(published())):
        used = {data.gpus[key].name for key in data.table["gpu"]}
        assert {data.gpus[name].price_source for name in used} == {paper.label}
        assert data.gpus["H100"].price_per_hour == {1: 12.29, 2: 24.58, 4: 49.16, 8: 98.32}
    elsewhere = published()
    table = elsewhere.table.assign(gpu=elsewhere.table["gpu"].replace("A10", "L40S"), source="mine")
    gpus = elsewhere.gpus | {"L40S": catalog.gpus(["l40s"])["l40s"]}
    mixed = merge(published(), type(elsewhere)(table, elsewhere.models, gpus))
    sources = {mixed.gpus[key].price_source for key in mixed.table["gpu"]}
    assert sources == {catalog.price_list().label}


# --- a user's own file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "# ours\ngpu,count,price_per_hour\na100,1,1.5\nH100, 1, 2.25\nA10,6,9\n"),
        ("p.yaml", "a100: {1: 1.5}\nH100: {1: 2.25}\na10: {6: 9}\n"),
        (
            "q.yml",
            json.dumps(
                [
                    {"gpu": "A100-40GB", "count": 1, "price_per_hour": 1.5},
                    {"gpu": "h100", "count": 1, "price_per_hour": 2.25},
                    {"gpu": "a10", "count": 6, "price_per_hour": 9},
                ]
            ),
        ),
    ],
)
def test_own_prices_replace_all_others(
    tmp_path: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_text(text)
    profiles = profiles_at(file)
    prices = {gpu.label: gpu.cost_per_hour for gpu in profiles}
    assert prices == {"1 x A100-40GB": 1.5, "1 x H100": 2.25, "6 x A10": 9.0}
    assert {gpu.price_source for gpu in profiles} == {f"{name}, as given"}
    assert "l4, l40s" in capsys.readouterr().err
    restricted = profiles_at(file, ["h100", "t4"])
    assert {gpu.name for gpu in restricted} == {"H100"}
    unpriced, unused = capsys.readouterr().err.splitlines()
    assert unpriced.endswith(f"{name}: t4")
    assert unused.endswith(f"{name}, not in catalog=: a10, a100")


def test_a_list_of_the_shipped_form_keeps_its_words(tmp_path: Path) -> None:
    file = tmp_path / "contract.yaml"
    file.write_text(
        "{provider: My cloud, source: the contract, date: 2026-10, kind: spot, region: here, licence: ours, "
        "prices: {h100: {4: 8.0}}}"
    )
    found = catalog.price_list(file)
    assert found.label == "My cloud, spot, here, 2026-10"
    assert found.price("h100", 1) == 2.0
    with pytest.raises(ConfigError, match="not of that kind"):
        catalog.price_list(file, "on_demand")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "gpu,count,price_per_hour\nh1000,1,2\n", "did you mean 'h100'"),
        ("p.csv", "gpu,count,price_per_hour\nh100,1,2\nH100,1,3\n", "has two prices"),
        ("p.csv", "gpu,count,price_per_hour\nh100,1,0\n", "prices.price_per_hour is not possible"),
        ("p.csv", "gpu,count,price_per_hour\nh100,1,nan\n", "prices.price_per_hour is not possible"),
        ("p.csv", "gpu,count,price_per_hour\nh100,1.5,2\n", "prices.count is not possible"),
        ("p.csv", "gpu,count,price_per_hour\nh100,1\n", "prices.price_per_hour is not possible"),
        ("p.csv", "gpu,price\nh100,2\n", "no table of prices"),
        ("p.csv", "gpu,count,price_per_hour\n", "no price in the file"),
        (
            "p.yaml",
            "h100: {1: 3}\nt4: {1: 1}\nh100: {2: 6}\n",
            "(?s)h100 stands twice in the prices.*p.yaml, line 3",
        ),
        ("p.yaml", "h100: {1: 3, 2: 6, 1: 4}\n", "1 stands twice in the prices"),
        ("p.yaml", "h100: 3\n", "no table of prices"),
        ("p.yaml", "h100: [", "not YAML"),
        ("p.yaml", "", "no table of prices"),
        ("p.yaml", "{provider: X, prices: {h100: {1: 2}}}", "prices.source is missing"),
    ],
)
def test_a_wrong_table_of_prices_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        catalog.price_list(file)


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        catalog.price_list(tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match=r"no price list 'runpot'[\s\S]*did you mean 'runpod'"):
        catalog.price_list("runpot")
    with pytest.raises(ConfigError, match="no prices_kind 'sport'"):
        catalog.price_list("aws", "sport")
    with pytest.raises(ConfigError, match="not of that region"):
        catalog.price_list("aws", region="eu-west-1")


# --- SkyPilot's format -----------------------------------------------------------------------------------


def test_skypilots_catalogue_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "vms.csv"
    file.write_text(AWS_VMS)
    found = catalog.price_list(file)
    assert found.price("l4", 1) == 0.8048
    assert found.price("l4", 4) == 4.6016
    assert found.price("l4", 2) == pytest.approx(2.3008)
    assert found.price("a10", 1) == 1.006  # what AWS sells is the A10G
    assert found.price("h100", 1) == pytest.approx(6.88)  # the PCIe card is another
    assert found.skipped == {"H100 PCIe": 1, "Gaudi HL-205": 1, "Trainium": 1}
    assert found.label == "vms.csv, on demand, us-east-1"
    profiles_at(found)
    assert "3 rows of" in capsys.readouterr().err

    spot = catalog.price_list(file, "spot")
    assert spot.price("l4", 1) == 0.2
    assert spot.price("l4", 4) is None  # no spot price
    assert spot.label == "vms.csv, spot, each profile where it is cheapest"
    here = catalog.price_list(file, "spot", "US-east-1")
    assert here.price("l4", 1) == 0.3
    with pytest.raises(ConfigError, match=r"no such region[\s\S]*eu-west-1, us-east-1"):
        catalog.price_list(file, region="mars")


def test_a_catalogue_without_a_known_gpu_type_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vms.csv"
    file.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region\nx,K80,1,0.9,,here\n"
    )
    with pytest.raises(ConfigError, match="no on-demand price of a known GPU type"):
        catalog.price_list(file)
