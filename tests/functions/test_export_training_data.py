"""export-training-data: what users liked as clean files, complete however it is interrupted, and nothing else."""

import json
import subprocess
from typing import Any

import httpx
import pytest

from infra.local.stack import Stack
from tests import commands
from tests.functions.corpus import PATH, Corpus
from tests.functions.deployments import clients
from tests.users import User

ALL = ["alpaca", "openai", "openai_dpo", "sharegpt", "together", "together_dpo"]
SLIPPAGE = "Slippage is the difference between the expected price of a swap and the price it is done at."
MNEMONIC = "abandon ability able about above absent absorb abstract absurd abuse access accident"
TON = "EQCtLtZ6bB1T5tYgPzLgKq6eqxRk3xkq2Jx0dRrFZB3h6rPB"


def test_what_was_liked_becomes_files_with_a_manifest(corpus: Corpus) -> None:
    user = corpus.user()
    kept = corpus.put(user, "What is slippage?", SLIPPAGE)
    corpus.put(user, "What is a pool?", "Two tokens that traders swap against, put in by many people.", feedback=-1)
    corpus.put(user, "What is TON?", "A blockchain that was begun by Telegram and goes on without it.", feedback=None)

    export = corpus.export()

    assert export["rows"] == 1
    assert [file["path"] for file in export["files"]] in (
        ["alpaca.train.json", "together.train.jsonl"],
        ["alpaca.validation.json", "together.validation.jsonl"],
    )
    assert export["manifest"] == f"datasets/{export['exportId']}/manifest.json"
    assert corpus.rows(export) == [
        {"instruction": "What is slippage?", "input": "", "output": SLIPPAGE, "source": "conversation"}
    ]
    assert corpus.rows(export, "together")[0]["messages"][-1] == {"role": "assistant", "content": SLIPPAGE}
    [note] = corpus.notes(export)
    assert (note["row"], note["conversation_id"]) == (1, kept)
    manifest = json.loads(corpus.files(export)["manifest.json"])
    assert manifest["files"] == export["files"]
    assert manifest["options"]["modelVersion"] == corpus.model
    assert {"promptVersion", "rules", "watermark", "consent", "tokensAre", "lineage", "schemaVersion"} <= set(manifest)
    assert export["skipped"]["disliked"] == 1


def test_training_data_is_filled(corpus: Corpus) -> None:
    id = corpus.put(corpus.user(), "What is slippage?", SLIPPAGE)

    corpus.export()

    [row] = corpus.sql(
        "select instruction, output, source, tags, split, quality_score, votes, dropped, content_hash is not null"
        " from training_data where conversation_id = %s", id
    )  # fmt: skip
    instruction, output, source, tags, split, score, votes, dropped, hashed = row
    assert (instruction, output, source, votes, dropped, hashed) == (
        "What is slippage?", SLIPPAGE, "conversation", 1, None, True
    )  # fmt: skip
    assert "lang:en" in tags and split in ("train", "validation") and 0.8 < score <= 1


def test_nothing_personal_leaves(corpus: Corpus) -> None:
    user = corpus.user()
    corpus.put(
        user,
        f"My mail is anna@example.org and my wallet {TON}: why did {TON} get nothing?",
        f"Nothing has arrived at {TON}; write to anna@example.org about it. {SLIPPAGE}",
    )
    corpus.put(user, f"My seed phrase is {MNEMONIC}, is it safe?", "Never show it to anybody, and move your funds now.")

    export = corpus.export(formats=ALL)

    files = b"".join(corpus.files(export).values()).decode()
    assert "anna@" not in files and TON not in files and "abandon" not in files
    told = {row["instruction"] for row in corpus.rows(export)}
    assert "My mail is <EMAIL_1> and my wallet <WALLET_1>: why did <WALLET_1> get nothing?" in told
    assert any("<SEED_PHRASE_1>" in question for question in told)
    stored = corpus.sql("select instruction || output from training_data where user_id = %s", user)
    assert not any("anna@" in text or TON in text or "abandon" in text for [text] in stored)


def test_every_format_is_as_its_target_wants_it(corpus: Corpus) -> None:
    corpus.put_many(60)
    user, thread = corpus.user(), "6f1a0d3e-4a44-4c06-9f5b-0d6f4ac8d5b1"
    corpus.put(user, "What is a jetton?", "A token on TON that anyone can make by a contract.", thread_id=thread)
    corpus.put(
        user, "And who keeps it?", "A contract of one's own for each jetton keeps the balance.", thread_id=thread
    )
    for feedback, answer in ((1, SLIPPAGE), (-1, "Slippage is a fee that the network takes from everybody who swaps.")):
        corpus.put(user, "What is slippage, please?", answer, feedback)

    export = corpus.export(formats=ALL)

    assert {file["format"] for file in export["files"]} == set(ALL)
    assert all(file["sizeBytes"] / 4 < file["tokens"] < file["sizeBytes"] for file in export["files"])
    assert list(corpus.takes(export)) == [(file["path"], []) for file in export["files"]]
    pairs = corpus.rows(export, "openai_dpo")
    assert [pair["preferred_output"][0]["content"] for pair in pairs] == [SLIPPAGE]
    assert pairs[0]["non_preferred_output"][0]["content"].startswith("Slippage is a fee")
    chats = [row["messages"] for row in corpus.rows(export, "together") if len(row["messages"]) == 4]
    assert [message["content"] for message in chats[0]][::2] == ["What is a jetton?", "And who keeps it?"]


def test_no_user_is_in_both_splits(corpus: Corpus) -> None:
    corpus.put_many(400, users=40)

    export = corpus.export(validationShare=0.3)

    halves: dict[str, set[int]] = {"train": set(), "validation": set()}
    owners = dict(corpus.sql("select id, user_id from conversations where model_version = %s", corpus.model))
    for note in corpus.notes(export):
        halves[note["split"]].add(owners[note["conversation_id"]])
    assert not halves["train"] & halves["validation"]
    assert len(halves["train"]) > 20 and len(halves["validation"]) > 4
    assert (
        corpus.files(corpus.export(validationShare=0.3))["alpaca.train.json"]
        == corpus.files(export)["alpaca.train.json"]
    )


def test_only_those_who_consent(corpus: Corpus) -> None:
    consents, silent = corpus.user(), corpus.user(consents=False)
    corpus.put(consents, "What is slippage?", SLIPPAGE)
    corpus.put(silent, "What is a jetton?", "A token on TON that anyone can make by a contract.")

    first = corpus.export()
    corpus.sql("update users set training_consent = (user_id = %s) where user_id in (%s, %s)", silent, consents, silent)
    kept = corpus.sql("select count(*) from training_data where user_id = %s", consents)
    second = corpus.export()

    assert corpus.questions(first) == ["What is slippage?"]
    assert first["skipped"]["no_consent"] == 1
    assert kept == [(0,)]
    assert corpus.questions(second) == ["What is a jetton?"]


def test_a_user_decides_by_himself(corpus: Corpus, stack: Stack) -> None:
    user, other = User.sign_up(stack), User.sign_up(stack)

    user.client(stack).rpc("set_training_consent", {"consent": True}).execute()

    consents = dict(
        corpus.sql("select user_id, training_consent from users where user_id in (%s, %s)", user.user_id, other.user_id)
    )
    assert consents == {user.user_id: True, other.user_id: False}


def test_of_equal_answers_one_is_kept_and_their_votes_count_together(corpus: Corpus) -> None:
    users = [corpus.user() for _ in range(4)]
    for user, vote in zip(users, (1, 1, -1, 1), strict=True):
        corpus.put(user, "What is slippage?", SLIPPAGE, vote)
    for user, vote in zip(users, (1, -1), strict=False):
        corpus.put(user, "what is a pool", "Two tokens that traders swap against, put in by many people.", vote)
    near = " It depends on how deep the pool is, on how large the swap is, and on what others do in the same second."
    corpus.put(users[0], "What does slippage depend on, in general?", SLIPPAGE + near)
    corpus.put(users[1], "What does slippage depend on, in general?", SLIPPAGE + near.replace("same", "very same"))

    export = corpus.export()

    assert corpus.questions(export) == ["What does slippage depend on, in general?", "What is slippage?"]
    skipped = export["skipped"]
    assert (skipped["duplicate"], skipped["conflict"], skipped["near_duplicate"]) == (3, 2, 1)


@pytest.mark.parametrize(
    ("answer", "columns", "reason"),
    [
        ("I don't know.", {}, "refusal"),
        (SLIPPAGE, {"status": "partial"}, "truncated"),
        (SLIPPAGE, {"flags": '[{"kind": "unknown_url", "text": "evil.example"}]'}, "flagged"),
        ("", {"status": "failed", "error_code": "model_unavailable"}, "error"),
        ("  ", {}, "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
def test_what_is_no_answer_is_left_out(corpus: Corpus, answer: str, columns: dict[str, Any], reason: str) -> None:
    corpus.put(corpus.user(), "What is slippage?", answer, **columns)

    export = corpus.export()

    assert (export["rows"], export["files"], export["skipped"]) == (0, [], {reason: 1})
    assert export["manifest"]


def test_filters(corpus: Corpus) -> None:
    user = corpus.user()
    corpus.put(user, "Was it old?", "Yes, it is from the year before the last one.", created_at="2025-01-05T00:00Z")
    corpus.put(
        user, "Is it new?", "Yes, it is from this year, and quite a good answer.", created_at="2026-02-05T00:00Z"
    )
    corpus.put(user, "So so?", "It is an answer that somebody found neither good nor bad.", feedback=0)
    corpus.put(user, "Short?", "Yes, it is.")

    assert corpus.questions(corpus.export(since="2026-01-01T00:00:00Z", until="2026-03-01T00:00:00Z")) == ["Is it new?"]
    assert corpus.questions(corpus.export(minFeedback=0)) == ["Is it new?", "Short?", "So so?", "Was it old?"]
    assert corpus.questions(corpus.export()) == ["Is it new?", "Short?", "Was it old?"]
    assert "Short?" not in corpus.questions(corpus.export(minQuality=0.75))


def test_a_dry_run_counts_and_writes_nothing(corpus: Corpus) -> None:
    corpus.put_many(30)

    export = corpus.export(dryRun=True)

    assert (export["rows"], export["files"], export["manifest"]) == (30, [], None)
    assert corpus.call("GET", f"/{export['exportId']}/urls").json()["files"] == []


def test_rows_by_hand_are_exported_too(corpus: Corpus) -> None:
    corpus.sql("delete from training_data where source = 'manual'")
    corpus.sql(
        "insert into training_data (instruction, input, output, source) values"
        " ('Say what it is.', 'Slippage', %s, 'manual'), ('My mail is bo@example.org.', null, %s, 'manual')",
        SLIPPAGE, "Thank you: it will be used to tell you about the swap, and for nothing else.",
    )  # fmt: skip
    corpus.sql(
        "update training_data set turns = %s where instruction like 'Say%%'",
        json.dumps([["My mail is bo@example.org.", "Thank you."]]),
    )  # fmt: skip

    answer = corpus.call("POST", body={"until": "2100-01-01T00:00:00Z"})
    rows = [row for row in corpus.rows(corpus.until(answer.json()["exportId"])) if row["source"] == "manual"]

    assert sorted(row["instruction"] for row in rows) == ["My mail is <EMAIL_1>.", "Say what it is.\n\nSlippage"]
    assert corpus.sql("select turns from training_data where turns is not null and source = 'manual'") == [
        ([["My mail is <EMAIL_1>.", "Thank you."]],)
    ]
    corpus.sql("delete from training_data where source = 'manual'")


def test_incremental_runs_give_each_row_once_and_lose_no_late_feedback(corpus: Corpus) -> None:
    user = corpus.user()
    late = corpus.put(user, "What is a jetton?", "A token on TON that anyone can make by a contract.", feedback=None)
    corpus.put(user, "What is slippage?", SLIPPAGE)
    first = corpus.export(incremental=True)

    corpus.put(user, "What is a pool?", "Two tokens that traders swap against, put in by many people.")
    second = corpus.export(incremental=True)
    corpus.sql("update conversations set feedback = 1 where id = %s", late)  # long after the watermark
    third = corpus.export(incremental=True)
    fourth = corpus.export(incremental=True)

    assert [corpus.questions(export) for export in (first, second, third, fourth)] == [
        ["What is slippage?"], ["What is a pool?"], ["What is a jetton?"], []
    ]  # fmt: skip
    assert third["toCollect"] < 5  # of all that is there
    assert corpus.questions(corpus.export()) == ["What is a jetton?", "What is a pool?", "What is slippage?"]


def test_feedback_that_is_taken_back_takes_the_row_along(corpus: Corpus) -> None:
    id = corpus.put(corpus.user(), "What is slippage?", SLIPPAGE)
    first = corpus.export()

    corpus.sql("update conversations set feedback = null where id = %s", id)
    second = corpus.export()
    corpus.sql("update conversations set feedback = -1 where id = %s", id)
    third = corpus.export()

    assert [export["rows"] for export in (first, second, third)] == [1, 0, 0]
    assert third["skipped"] == {"disliked": 1}


def test_files_of_a_run_that_was_killed_at_its_end_go(corpus: Corpus) -> None:
    user = corpus.user()
    corpus.put(user, "What is slippage?", SLIPPAGE)
    corpus.put_many(20)
    old = corpus.export()
    corpus.call("POST", "/erase", {"userId": user})
    corpus.until(old["exportId"], "replaced")
    _, storage = clients(corpus.stack)
    key = f"datasets/{old['exportId']}/alpaca.train.json"
    storage.put_object(Bucket="ai-models", Key=key, Body=b"as if it had never been removed")

    again = corpus.call("POST", "/erase", {"userId": user}).json()

    assert (again["conversations"], again["exports"]) == (0, [])
    assert corpus.sql("select name from storage.objects where name = %s", key) == []


def test_no_model_is_where_exports_are(corpus: Corpus) -> None:
    body = {"modelName": "datasets", "baseModel": "llama", "source": "s3://training/any/"}
    headers = {"apikey": corpus.stack.keys.secret}
    answer = httpx.post(f"{corpus.origin}/functions/v1/deploy-model", json=body, headers=headers)

    assert (answer.status_code, "modelName" in answer.json()["error"]) == (422, True)


def test_erasure_reaches_tables_and_files(corpus: Corpus) -> None:
    user, other = corpus.learner(), corpus.learner()
    corpus.put(user, "What is slippage?", SLIPPAGE)
    corpus.put(user, "What is it then?", "A fee that the network takes from everybody who swaps a token.", feedback=-1)
    corpus.put(other, "What is it then?", "A difference of prices, between what was expected and what was done.")
    corpus.put_many(40)
    old = corpus.export(formats=["alpaca", "openai_dpo"])
    untouched = corpus.export(since="2100-01-01T00:00:00Z")
    assert len(corpus.rows(old, "openai_dpo")) == 1
    name = f"ton-{user}"
    corpus.sql(
        "insert into model_metadata (model_name, version, dataset_export_id) values (%s, 'v1', %s)",
        name, old["exportId"],
    )  # fmt: skip

    answer = corpus.call("POST", "/erase", {"userId": user})

    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["conversations"], told["trainingData"]) == (2, 2)
    [replaced] = told["exports"]
    assert replaced["exportId"] == old["exportId"]
    assert told["models"] == [{"modelName": name, "version": "v1"}]
    assert any(f"{name} v1" in said for said in told["cannotBeUndone"])
    new = corpus.until(replaced["replacedBy"])
    assert (new["rows"], new["replaces"]) == (41, old["exportId"])
    assert "What is slippage?" not in corpus.questions(new)
    assert corpus.rows(new, "openai_dpo") == []
    assert corpus.call("GET", f"/{old['exportId']}").json()["status"] == "replaced"
    assert corpus.call("GET", f"/{old['exportId']}/urls").status_code == 409
    assert corpus.sql("select count(*) from storage.objects where name like %s", f"datasets/{old['exportId']}/%") == [
        (0,)
    ]
    assert corpus.sql("select count(*) from conversations where user_id = %s", user) == [(0,)]
    assert corpus.call("GET", f"/{untouched['exportId']}").json()["status"] == "ready"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", ""), ("GET", ""), ("GET", "/1"), ("GET", "/1/urls"), ("POST", "/erase")],
    ids=["export", "list", "read", "urls", "erase"],
)
def test_for_admins_only(corpus: Corpus, alice: User, method: str, path: str) -> None:
    for headers, status in (
        ({}, 401),
        ({"apikey": corpus.stack.keys.publishable}, 401),
        ({"Authorization": f"Bearer {alice.token}"}, 403),
        ({"Authorization": "Bearer forged"}, 401),
    ):
        answer = httpx.request(method, f"{corpus.origin}{PATH}{path}", json={"userId": 1}, headers=headers)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"since": "2026-02-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "until"),
        ({"minFeedback": 2}, "minFeedback"),
        ({"minQuality": 1.5}, "minQuality"),
        ({"formats": []}, "formats"),
        ({"formats": ["parquet"]}, "formats"),
        ({"validationShare": 0.9}, "validationShare"),
        ({"modelVersion": "a\u0000b"}, "modelVersion"),
        ([], "body"),
    ],
    ids=["word", "no zone", "turned round", "feedback", "quality", "none", "unknown", "share", "nul", "list"],
)
def test_says_what_is_wrong_with_a_request(corpus: Corpus, body: Any, place: str) -> None:
    answer = corpus.call("POST", body=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert place in answer.json()["error"]


def test_there_is_no_such_export(corpus: Corpus) -> None:
    for path in ("/999999999", "/999999999/urls"):
        assert corpus.call("GET", path).status_code == 404
    assert corpus.call("GET", "/0").status_code == 422
    assert corpus.call("GET", "/one").status_code == 422


def test_the_commands_of_a_terminal(corpus: Corpus) -> None:
    corpus.put_many(30)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run(corpus.stack.environment, "shared.exports", *arguments)

    ran = command("run", "--model-version", corpus.model, "--formats", "openai")
    assert ran.returncode == 0, ran.stderr
    id = ran.stdout.split()[1].rstrip(":")
    assert "30 rows, ready" in ran.stdout
    assert f"{id}\tready\t30 rows" in command("list").stdout
    assert "openai.train.jsonl" in command("show", id).stdout
    untold = command("fine-tune", id, "--provider", "together", "--base-model", "llama")
    assert (untold.returncode, "TOGETHER_API_KEY" in untold.stderr) == (1, True)
    assert command("jobs").returncode == 0
    refused = command("run", "--since", "yesterday")
    assert (refused.returncode, "--since" in refused.stderr) == (1, True)
