"""The template as osls makes it from serverless.yml, beside the code that it runs."""

import json
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from functions.deploy_model import events as deployments
from functions.export_training_data import events as exports
from infra.aws import deploying, local, stages
from infra.aws.packaging import FUNCTIONS, ROOT, STREAMING
from infra.aws.stages import Stage, StageError
from shared import deferred, queue, telemetry
from shared import deployments as transfers
from shared.errors import Misconfigured
from shared.exports import WORKER, Export
from shared.settings import Settings, key_name, provider_key

SETTINGS = {
    "AWS_REGION": "eu-central-1",
    "SUPABASE_URL": "https://ref.supabase.co",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_example",
    "MODEL_CHAIN": "groq:llama-3.3-70b-versatile,vllm:own",
    "MODEL_PROVIDERS": '{"vllm": {"base_url": "https://vllm.example/v1"}}',
    "MODELS": '{"openai:gpt-4o": {"key_name": "SPARE_API_KEY"}}',
    "EMBEDDING_MODEL": "openai:text-embedding-3-small",
    "S3_PROTOCOL_ACCESS_KEY_ID": "example",
}
QUEUES = {"ai-finance": "AiFinance", "deploy-model": "DeployModel", "export-training-data": "ExportTrainingData"}
WORKERS = {
    "ai-finance": deferred.WORKER,
    "deploy-model": transfers.WORKER,
    "export-training-data": WORKER,
}
LAMBDAS_METRICS = {"Errors", "Throttles", "Duration"}
Template = dict[str, Any]

pytestmark = pytest.mark.timeout(180)  # the first test waits for osls and for cfn-lint's imports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of nothing, for what is in them is no part of a template."""
    folder = tmp_path_factory.mktemp("packages")
    for function in FUNCTIONS:
        with zipfile.ZipFile(folder / f"{function}.zip", "w") as zipped:
            zipped.writestr("nothing", "")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """The usual stage's template."""
    return make(folder, Stage("test", SETTINGS, ".env.test"))


@pytest.fixture(scope="module")
def template(made: Path) -> Template:
    return read(made)


@pytest.fixture(scope="module")
def rich_template(folder: Path) -> Template:
    """Of a stage with all that can be chosen."""
    chosen = {"CONCURRENCY": "reserved", "ALARM_EMAIL": "ops@example.com", "ARCHITECTURE": "arm64"}
    return read(make(folder, Stage("rich", {**SETTINGS, **chosen}, ".env.rich")))


def make(folder: Path, stage: Stage) -> Path:
    package = {"runtime": "python3.13", "architecture": stage.deployment("ARCHITECTURE")}
    (folder / "package.json").write_text(json.dumps(package))
    return deploying.make(stage, folder)


def read(made: Path) -> Template:
    found: Template = json.loads(made.read_bytes())
    return found


def of_type(template: Template, kind: str) -> dict[str, Any]:
    """The properties of the resources of a type, by their names."""
    found = template["Resources"].items()
    return {name: each.get("Properties", {}) for name, each in found if each["Type"] == kind}


def logical(function: str, what: str = "LambdaFunction") -> str:
    return f"{deploying.normalised(function)}{what}"


def lambda_of(template: Template, function: str) -> dict[str, Any]:
    found: dict[str, Any] = template["Resources"][logical(function)]["Properties"]
    return found


def environment(template: Template, function: str) -> dict[str, Any]:
    found: dict[str, Any] = lambda_of(template, function)["Environment"]["Variables"]
    return found


def statements(template: Template, role: str) -> list[dict[str, Any]]:
    policies = template["Resources"][role]["Properties"]["Policies"]
    return [statement for policy in policies for statement in policy["PolicyDocument"]["Statement"]]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_the_template_is_one_that_cfn_lint_has_nothing_against(made: Path) -> None:
    deploying.lint(made)


def test_a_template_that_cloudformation_would_refuse_is_not_deployed(made: Path, tmp_path: Path) -> None:
    wrong = read(made)
    wrong["Resources"][logical("ai-finance")]["Properties"]["Timeout"] = 500
    (tmp_path / "template.json").write_text(json.dumps(wrong))

    with pytest.raises(StageError, match="E3505"):
        deploying.lint(tmp_path / "template.json")


def test_each_folder_of_functions_is_a_function(template: Template) -> None:
    lambdas = of_type(template, "AWS::Lambda::Function").values()
    modules = [file.parent.name for file in ROOT.glob("functions/*/handler.py")]

    assert {each["FunctionName"]: each["Handler"] for each in lambdas} == {
        f"supabase-ai-gateway-test-{module.replace('_', '-')}": f"functions.{module}.handler.handler"
        for module in modules
    }


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_answers_at_both_of_its_paths_and_below(template: Template, function: str) -> None:
    routes = of_type(template, "AWS::ApiGatewayV2::Route").values()
    integration = f"HttpApiIntegration{deploying.normalised(function)}"
    own = {each["RouteKey"] for each in routes if {"Ref": integration} in each["Target"]["Fn::Join"][1]}

    paths = [f"/functions/v1/{function}", f"/{function}"]
    assert own == {f"ANY {path}{below}" for path in paths for below in ("", "/{proxy+}")}
    assert template["Resources"][integration]["Properties"]["PayloadFormatVersion"] == "2.0"


def test_preflights_reach_the_functions(template: Template) -> None:
    [api] = of_type(template, "AWS::ApiGatewayV2::Api").values()

    assert "CorsConfiguration" not in api


def test_a_function_url_streams(template: Template) -> None:
    urls = {json.dumps(each["TargetFunctionArn"]): each for each in of_type(template, "AWS::Lambda::Url").values()}

    assert set(urls) == {json.dumps({"Fn::GetAtt": [logical(function), "Arn"]}) for function in STREAMING}
    assert {each["InvokeMode"] for each in urls.values()} == {"RESPONSE_STREAM"}
    assert {name for name in FUNCTIONS if "AWS_LAMBDA_EXEC_WRAPPER" in environment(template, name)} == STREAMING


def test_each_function_has_a_role_of_its_own(template: Template) -> None:
    roles = [lambda_of(template, function)["Role"]["Fn::GetAtt"][0] for function in FUNCTIONS]

    assert len(set(roles)) == len(FUNCTIONS)
    assert set(of_type(template, "AWS::IAM::Role")) == {*roles, "SchedulerRole"}


def test_no_role_may_do_anything_to_everything(template: Template) -> None:
    every = [each for role in of_type(template, "AWS::IAM::Role") for each in statements(template, role)]

    assert not [each for each in every if any("*" in action for action in listed(each["Action"]))]
    stars = {json.dumps(resource) for each in every for resource in listed(each["Resource"]) if "*" in str(resource)}
    bucket = "arn:${AWS::Partition}:s3:::supabase-ai-gateway-test-training-${AWS::AccountId}/*"
    assert stars == {json.dumps({"Fn::Sub": bucket})}


@pytest.mark.parametrize(
    ("function", "actions"),
    [
        ("ai-finance", {"sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}),
        ("ai-with-rag", {"sqs:SendMessage"}),
        (
            "deploy-model",
            {"sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}
            | {"s3:ListBucket", "s3:GetObject"},
        ),
        (
            "export-training-data",
            {"sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"},
        ),
    ],
)
def test_a_role_may_do_what_its_function_does(template: Template, function: str, actions: set[str]) -> None:
    role = lambda_of(template, function)["Role"]["Fn::GetAtt"][0]
    found = {action for each in statements(template, role) for action in listed(each["Action"])}

    assert found == actions | {"logs:CreateLogStream", "logs:PutLogEvents", "ssm:GetParameters"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_may_send_to_the_queues_it_knows(template: Template, function: str) -> None:
    role = lambda_of(template, function)["Role"]["Fn::GetAtt"][0]
    sendable = {
        resource["Fn::GetAtt"][0]
        for each in statements(template, role)
        if "sqs:SendMessage" in each["Action"]
        for resource in listed(each["Resource"])
    }

    known = {each["Ref"] for name, each in environment(template, function).items() if name.endswith("QUEUE_URL")}
    assert {name for name in sendable if not name.endswith("DeadLetters")} == known


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_may_read_the_secrets_it_is_told_of_and_no_others(template: Template, function: str) -> None:
    variables, role = environment(template, function), lambda_of(template, function)["Role"]["Fn::GetAtt"][0]
    [read] = [each for each in statements(template, role) if each["Action"] == "ssm:GetParameters"]

    names = variables["PARAMETERS"].split(",")
    assert variables["PARAMETERS_PATH"] == "/supabase-ai-gateway/test"
    prefix = "arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter/supabase-ai-gateway/test"
    assert read["Resource"] == [{"Fn::Sub": f"{prefix}/{name}"} for name in names]
    assert {"VLLM_API_KEY", "SPARE_API_KEY", "GROQ_API_KEY"} < set(names)
    assert all(stages.is_secret(name) for name in names)


def test_every_secret_setting_is_some_functions(template: Template) -> None:
    told = {name for function in FUNCTIONS for name in environment(template, function)["PARAMETERS"].split(",")}

    assert stages.secret_settings() - told == {"SUPABASE_SERVICE_ROLE_KEY"}  # another name for SUPABASE_SECRET_KEY


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_secret_is_in_the_environment(template: Template, function: str) -> None:
    assert not [name for name in environment(template, function) if stages.is_secret(name)]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_set_for_a_stage_is_in_every_functions_environment(template: Template, function: str) -> None:
    given = {name: value for name, value in SETTINGS.items() if name != "AWS_REGION"}

    assert environment(template, function).items() >= given.items()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_templates_own_variables_are_settings(template: Template, function: str) -> None:
    besides = {"PARAMETERS", "PARAMETERS_PATH", "METRICS_NAMESPACE", "AWS_LAMBDA_EXEC_WRAPPER"}

    assert environment(template, function).keys() - SETTINGS.keys() - besides <= {*stages.TEMPLATES}


@pytest.mark.parametrize(("function", "name"), QUEUES.items())
def test_a_queue_comes_to_its_function_and_only_what_failed_comes_again(
    template: Template, function: str, name: str
) -> None:
    sources = of_type(template, "AWS::Lambda::EventSourceMapping").values()
    [source] = [each for each in sources if each["EventSourceArn"] == {"Fn::GetAtt": [f"{name}Queue", "Arn"]}]

    assert source["FunctionName"] == {"Fn::GetAtt": [logical(function), "Arn"]}
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert source["BatchSize"] == (10 if function == "ai-finance" else 1)


@pytest.mark.parametrize(("function", "name"), QUEUES.items())
def test_a_message_is_hidden_for_as_long_as_it_is_worked_on(template: Template, function: str, name: str) -> None:
    hidden = template["Resources"][f"{name}Queue"]["Properties"]["VisibilityTimeout"]

    assert hidden >= lambda_of(template, function)["Timeout"] + 60


def test_a_transfer_is_not_thought_lost_while_its_message_is_hidden(template: Template) -> None:
    hidden = template["Resources"]["DeployModelQueue"]["Properties"]["VisibilityTimeout"]

    assert hidden < transfers.IDLE_SECONDS


def test_a_worker_may_send_to_the_queue_that_it_is_called_by(template: Template) -> None:
    allowed = {function for function in FUNCTIONS if lambda_of(template, function).get("RecursiveLoop") == "Allow"}

    assert allowed == {*QUEUES}


def test_a_deferred_answer_is_tried_as_often_as_it_may_be_while_its_turn_is_held(template: Template) -> None:
    hidden = template["Resources"]["AiFinanceQueue"]["Properties"]["VisibilityTimeout"]

    assert hidden * Settings.model_fields["answer_tries"].default <= deferred.HOLD_SECONDS


@pytest.mark.parametrize("name", QUEUES.values())
def test_what_fails_for_an_hour_goes_to_the_dead_letters(template: Template, name: str) -> None:
    properties = template["Resources"][f"{name}Queue"]["Properties"]
    redrive = properties["RedrivePolicy"]

    assert redrive["deadLetterTargetArn"] == {"Fn::GetAtt": [f"{name}DeadLetters", "Arn"]}
    assert 3600 <= redrive["maxReceiveCount"] * properties["VisibilityTimeout"] <= 2 * 3600
    assert redrive["maxReceiveCount"] >= 5  # as AWS advises
    assert template["Resources"][f"{name}DeadLetters"]["Properties"]["MessageRetentionPeriod"] == 14 * 24 * 3600


@pytest.mark.parametrize("function", ["deploy-model", "export-training-data"])
def test_an_event_that_a_function_fails_with_goes_to_its_dead_letters(template: Template, function: str) -> None:
    configs = of_type(template, "AWS::Lambda::EventInvokeConfig").values()
    [config] = [each for each in configs if each["FunctionName"] == {"Ref": logical(function)}]
    dead_letters = {"Fn::GetAtt": [f"{QUEUES[function]}DeadLetters", "Arn"]}
    role = lambda_of(template, function)["Role"]["Fn::GetAtt"][0]

    assert config["DestinationConfig"]["OnFailure"] == {"Destination": dead_letters}
    assert config["MaximumRetryAttempts"] == 2
    sendable = [each["Resource"] for each in statements(template, role) if "sqs:SendMessage" in each["Action"]]
    assert dead_letters in [resource for each in sendable for resource in listed(each)]


def test_a_schedules_event_is_one_that_its_function_knows(template: Template) -> None:
    schedules = of_type(template, "AWS::Scheduler::Schedule")
    told = {name: json.loads(each["Target"]["Input"]) for name, each in schedules.items()}

    assert {name: each["Target"]["Arn"]["Fn::GetAtt"][0] for name, each in schedules.items()} == {
        "CheckCanaries": logical("deploy-model"),
        "LookAfterExports": logical("export-training-data"),
        "ExportDaily": logical("export-training-data"),
    }
    assert {each["source"] for each in told.values()} <= {*exports.SCHEDULES}
    assert Export(**told["ExportDaily"]["export"]).incremental
    assert schedules["CheckCanaries"]["ScheduleExpression"] == "rate(5 minutes)"


def test_an_invocation_that_scheduler_can_t_make_goes_to_the_dead_letters(template: Template) -> None:
    [invoke, send] = statements(template, "SchedulerRole")

    for schedule in of_type(template, "AWS::Scheduler::Schedule").values():
        target = schedule["Target"]
        assert target["RoleArn"] == {"Fn::GetAtt": ["SchedulerRole", "Arn"]}
        assert target["RetryPolicy"]["MaximumRetryAttempts"] > 0
        assert target["Arn"] in invoke["Resource"]
        assert target["DeadLetterConfig"]["Arn"] in send["Resource"]


def test_the_training_bucket_is_encrypted_and_nobody_elses(template: Template) -> None:
    bucket = template["Resources"]["TrainingBucket"]["Properties"]
    [statement] = template["Resources"]["TrainingBucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]

    assert bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert (statement["Effect"], statement["Principal"]) == ("Deny", "*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_a_manifest_in_the_training_bucket_is_told_to_deploy_model(template: Template) -> None:
    bucket = template["Resources"]["TrainingBucket"]
    [told] = bucket["Properties"]["NotificationConfiguration"]["LambdaConfigurations"]
    permission = template["Resources"]["TrainingBucketPermission"]["Properties"]

    assert told["Event"] == "s3:ObjectCreated:*"
    assert told["Filter"]["S3Key"]["Rules"] == [{"Name": "suffix", "Value": deployments.MANIFESTS}]
    assert told["Function"] == permission["FunctionName"] == {"Fn::GetAtt": [logical("deploy-model"), "Arn"]}
    assert environment(template, "deploy-model")["TRAINING_BUCKET"] == bucket["Properties"]["BucketName"]
    assert permission["SourceArn"]["Fn::Sub"].endswith(bucket["Properties"]["BucketName"]["Fn::Sub"])
    assert "SourceAccount" in permission


def test_a_request_has_the_time_it_is_promised(template: Template) -> None:
    promised = Settings.model_fields["request_timeout_seconds"].default

    assert all(lambda_of(template, function)["Timeout"] > promised for function in FUNCTIONS)


def test_logs_are_kept_for_a_month(template: Template) -> None:
    groups = of_type(template, "AWS::Logs::LogGroup").values()

    assert {each["LogGroupName"] for each in groups} == {
        f"/aws/lambda/supabase-ai-gateway-test-{function}" for function in FUNCTIONS
    }
    assert {each["RetentionInDays"] for each in groups} == {30}


def test_every_alarm_is_of_figures_that_there_are(template: Template) -> None:
    workers = {*FUNCTIONS, *WORKERS.values()}
    namespaces = {environment(template, function)["METRICS_NAMESPACE"] for function in FUNCTIONS}
    [own] = namespaces

    for alarm in of_type(template, "AWS::CloudWatch::Alarm").values():
        [dimension] = alarm["Dimensions"]
        match alarm["Namespace"], dimension["Name"]:
            case "AWS/Lambda", "FunctionName":
                assert alarm["MetricName"] in LAMBDAS_METRICS
                assert dimension["Value"]["Ref"] in of_type(template, "AWS::Lambda::Function")
            case "AWS/SQS", "QueueName":
                assert alarm["MetricName"] == "ApproximateNumberOfMessagesVisible"
                assert dimension["Value"]["Fn::GetAtt"][0] in of_type(template, "AWS::SQS::Queue")
            case namespace, "function":
                assert namespace == own
                assert alarm["MetricName"] in telemetry.UNITS
                assert dimension["Value"] in workers
            case unknown:
                pytest.fail(f"nobody writes figures for {unknown}")
        assert alarm["AlarmActions"] == [{"Ref": "AlarmTopic"}]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_fails_is_throttled_or_slow_gives_an_alarm(template: Template, function: str) -> None:
    alarms = of_type(template, "AWS::CloudWatch::Alarm").values()
    lambdas = {
        each["MetricName"]: each["Threshold"]
        for each in alarms
        if each["Dimensions"] == [{"Name": "FunctionName", "Value": {"Ref": logical(function)}}]
    }
    failures = [each for each in alarms if each["Dimensions"] == [{"Name": "function", "Value": function}]]
    timeout = lambda_of(template, function)["Timeout"]

    assert lambdas.keys() == LAMBDAS_METRICS
    assert (timeout - queue.MARGIN_SECONDS) * 1000 < lambdas["Duration"] < timeout * 1000
    assert [each["MetricName"] for each in failures] == ["Errors"]


@pytest.mark.parametrize("function", QUEUES)
def test_a_worker_that_fails_gives_an_alarm(template: Template, function: str) -> None:
    handler = import_module(f"functions.{function.replace('-', '_')}.handler").handler
    alarms = of_type(template, "AWS::CloudWatch::Alarm").values()
    failures = [each for each in alarms if each["Dimensions"] == [{"Name": "function", "Value": handler.worker}]]

    assert handler.worker == WORKERS[function]
    assert [(each["MetricName"], each["Threshold"]) for each in failures] == [("Errors", 1)]


@pytest.mark.parametrize("name", QUEUES.values())
def test_dead_letters_give_an_alarm(template: Template, name: str) -> None:
    alarms = of_type(template, "AWS::CloudWatch::Alarm").values()
    of_queue = {"Name": "QueueName", "Value": {"Fn::GetAtt": [f"{name}DeadLetters", "QueueName"]}}

    assert [each["Threshold"] for each in alarms if each["Dimensions"] == [of_queue]] == [1]


def test_the_dashboard_shows_every_function(template: Template) -> None:
    [dashboard] = of_type(template, "AWS::CloudWatch::Dashboard").values()
    widgets = json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]
    figures = [metric for widget in widgets for metric in widget["properties"]["metrics"]]

    assert {metric[1] for metric in figures if metric[0].startswith("SupabaseAiGateway")} <= telemetry.UNITS.keys()
    assert {metric[3] for metric in figures if metric[0] == "AWS/Lambda"} == {
        f"${{{logical(function)}}}" for function in FUNCTIONS
    }


def test_the_outputs_say_where_everything_is(template: Template) -> None:
    urls = {"HttpApiUrl", *(logical(function, "LambdaFunctionUrl") for function in STREAMING)}
    queues = {f"{name}{kind}Url" for name in QUEUES.values() for kind in ("Queue", "DeadLetters")}

    assert template["Outputs"].keys() >= urls | queues | {"TrainingBucket", "AlarmTopic", "DashboardUrl"}


def test_concurrency_is_reserved_and_alarms_are_sent_where_a_stage_says_so(
    template: Template, rich_template: Template
) -> None:
    sources = of_type(rich_template, "AWS::Lambda::EventSourceMapping").values()
    asked = {each["FunctionName"]["Fn::GetAtt"][0]: each["ScalingConfig"]["MaximumConcurrency"] for each in sources}

    for function in FUNCTIONS:
        assert "ReservedConcurrentExecutions" not in lambda_of(template, function)
        reserved = lambda_of(rich_template, function)["ReservedConcurrentExecutions"]
        assert reserved >= 2 * asked.get(logical(function), 1)
        assert lambda_of(rich_template, function)["Architectures"] == ["arm64"]
    assert not of_type(template, "AWS::SNS::Subscription")
    [subscription] = of_type(rich_template, "AWS::SNS::Subscription").values()
    assert subscription["Endpoint"] == "ops@example.com"


def test_a_stage_names_all_that_is_wrong_with_it_and_what_to_do() -> None:
    values = {"MODEL_API_KEY": "sk-1", "GROQ_API_KEY": "gsk-2", "MODLE_NAME": "x", "QUEUE_URL": "https://sqs.example"}
    values |= {"CONCURRENCY": "much"}

    with pytest.raises(StageError) as caught:
        deploying.check_settings(Stage("test", values, ".env.test"))

    told = str(caught.value)
    assert "MODLE_NAME: there is no such setting" in told
    assert "QUEUE_URL: the template says that itself" in told
    for name in ("MODEL_API_KEY", "GROQ_API_KEY"):
        assert f"--name /supabase-ai-gateway/test/{name} --type SecureString" in told
    for name in ("SUPABASE_URL", "EMBEDDING_MODEL", "S3_PROTOCOL_ACCESS_KEY_ID", "AWS_REGION", "CONCURRENCY"):
        assert name in told.rpartition("missing or malformed: ")[2]
    assert "sk-1" not in told
    assert "gsk-2" not in told


def test_a_stage_that_says_more_than_lambda_holds_is_refused() -> None:
    models = json.dumps({f"openai:{number}": {"max_tokens": 100} for number in range(100)})

    with pytest.raises(StageError, match="more than Lambda's environment takes"):
        deploying.check_settings(Stage("test", {**SETTINGS, "MODELS": models}, ".env.test"))


def test_a_providers_key_is_named_as_the_functions_name_it() -> None:
    with pytest.raises(Misconfigured, match=key_name("my-own.vllm")):
        provider_key("my-own.vllm")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """AWS's parameter store as moto has it."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("ssm", region_name=SETTINGS["AWS_REGION"])


def test_the_command_for_each_secret_that_is_missing_is_told(store: Any) -> None:
    stage = Stage("test", SETTINGS, ".env.test")
    store.put_parameter(Name=f"{stage.path}/SUPABASE_SECRET_KEY", Value="sb_secret_1", Type="SecureString")

    with pytest.raises(StageError) as caught:
        deploying.check_parameters(stage)

    told = str(caught.value)
    for name in ("EMBEDDING_API_KEY", "GROQ_API_KEY", "S3_PROTOCOL_ACCESS_KEY_SECRET", "VLLM_API_KEY"):
        assert f"aws ssm put-parameter --region eu-central-1 --name {stage.path}/{name} --type SecureString" in told
    assert "SUPABASE_SECRET_KEY" not in told


def test_a_secret_that_is_kept_in_the_open_is_refused(store: Any) -> None:
    stage = Stage("test", SETTINGS, ".env.test")
    for name in stage.needed_parameters():
        kind: Any = "String" if name == "GROQ_API_KEY" else "SecureString"
        store.put_parameter(Name=f"{stage.path}/{name}", Value="secret", Type=kind)

    with pytest.raises(StageError, match="in the open, as String: GROQ_API_KEY"):
        deploying.check_parameters(stage)


class Deployments:
    """A stage's deployments as osls leaves them, in ministack."""

    def __init__(self) -> None:
        self.stage, self.is_there = Stage("test", SETTINGS, ".env.test"), False
        self.s3, self.cloudformation = (deploying.client(self.stage, name) for name in ("s3", "cloudformation"))

    def put(self, timestamp: str, is_tried: bool = True) -> None:
        """One more, in use from now on."""
        self.use(timestamp)
        folder = f"serverless/{stages.SERVICE}/test/{timestamp}-2026-11-01T00:00:00.000Z"
        bucket = deploying.bucket_of(self.stage)
        self.s3.put_object(Bucket=bucket, Key=f"{folder}/compiled-cloudformation-template.json")
        if is_tried:
            deploying.mark(self.stage)

    def use(self, timestamp: str) -> None:
        bucket = {"Type": "AWS::S3::Bucket"}
        code = f"serverless/{stages.SERVICE}/test/{timestamp}-2026-11-01T00:00:00.000Z/ai-finance.zip"
        topic = {"Type": "AWS::SNS::Topic", "Properties": {"DisplayName": code}}
        body = json.dumps({"Resources": {"ServerlessDeploymentBucket": bucket, "Code": topic}})
        name = f"{stages.SERVICE}-test"
        change, done = (
            (self.cloudformation.update_stack, "stack_update_complete")
            if self.is_there
            else (self.cloudformation.create_stack, "stack_create_complete")
        )
        change(StackName=name, TemplateBody=body)
        self.cloudformation.get_waiter(done).wait(StackName=name, WaiterConfig={"Delay": 1})
        self.is_there = True

    def remove(self, timestamp: str) -> None:
        folder = f"serverless/{stages.SERVICE}/test/{timestamp}-2026-11-01T00:00:00.000Z"
        bucket = deploying.bucket_of(self.stage)
        self.s3.delete_object(Bucket=bucket, Key=f"{folder}/compiled-cloudformation-template.json")


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """AWS's CloudFormation and S3 as ministack has them."""
    with local.ministack(tmp_path) as endpoint:
        for name, value in local.credentials(endpoint).items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture
def kept(cloud: None) -> Deployments:
    """Two that answered as they should, and one that didn't, which is in use."""
    kept = Deployments()
    kept.put("1700000001000")
    kept.put("1700000002000")
    kept.put("1700000003000", is_tried=False)
    return kept


def test_a_rollback_goes_to_the_last_deployment_that_was_tried_out(kept: Deployments) -> None:
    before_the_failed_one = deploying.chosen(kept.stage, None)
    kept.put("1700000004000")

    assert before_the_failed_one == ("1700000003000", "1700000002000")
    assert deploying.chosen(kept.stage, None) == ("1700000004000", "1700000002000")


def test_a_rollback_may_be_told_to_go_to_any_that_is_kept(kept: Deployments) -> None:
    kept.put("1700000004000")

    assert deploying.chosen(kept.stage, "1700000003000") == ("1700000004000", "1700000003000")
    with pytest.raises(StageError, match=r"1700000003000 \([^)]*, not tried out\)"):
        deploying.chosen(kept.stage, "1700000000000")


def test_where_none_was_tried_out_none_is_gone_back_to(cloud: None) -> None:
    kept = Deployments()
    for timestamp in ("1700000001000", "1700000002000"):
        kept.put(timestamp, is_tried=False)

    with pytest.raises(StageError, match=r"no such deployment to go back to.*STAGE=test TO="):
        deploying.chosen(kept.stage, None)


def test_marks_go_with_what_is_kept_no_more(kept: Deployments) -> None:
    kept.remove("1700000001000")
    kept.put("1700000004000")

    assert deploying.tried(kept.stage) == {"1700000002000", "1700000004000"}


def test_a_stage_that_does_not_answer_says_how_to_go_back() -> None:
    with pytest.raises(StageError, match=r"doesn't answer(.|\n)*test is live .*make rollback STAGE=test"):
        deploying.accept(Stage("test", SETTINGS, ".env.test"), "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["deploy", "nowhere"], "error: No stage nowhere: its settings stand in .env.nowhere"),
        (["rollback", "nowhere"], "error: No stage nowhere"),
        (["deploy", "../nowhere"], "is no name for a stage"),
        (["deploy", "example"], "error: No stage example"),
    ],
)
def test_a_stage_that_there_is_none_of_is_said_to_be_none(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploying.main(arguments) == 1
    assert told in capsys.readouterr().err


def test_without_credentials_it_is_said_how_to_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with pytest.raises(StageError, match=r"Unable to locate credentials.*aws configure"):
        deploying.account_of(Stage("test", SETTINGS, ".env.test"))
