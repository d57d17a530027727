// Alarms to one topic, and a dashboard: the same for each function, so written once. Missing figures are no alarm, for a
// function that nobody calls has none.

// As osls names a function's resource. Workers count their errors apart, for Lambda counts none where a message fails.
const FUNCTIONS = {
  "ai-finance": { resource: "AiDashfinanceLambdaFunction", name: "AiFinance", counted: ["ai-finance", "ai-finance-worker"] },
  "ai-with-rag": { resource: "AiDashwithDashragLambdaFunction", name: "AiWithRag", counted: ["ai-with-rag"] },
  "deploy-model": { resource: "DeployDashmodelLambdaFunction", name: "DeployModel", counted: ["deploy-model", "deploy-model-worker"] },
  "export-training-data": {
    resource: "ExportDashtrainingDashdataLambdaFunction",
    name: "ExportTrainingData",
    counted: ["export-training-data", "export-training-data-worker"],
  },
};
const QUEUES = ["AiFinance", "DeployModel", "ExportTrainingData"];
const MINUTES = 60;

module.exports = async ({ resolveConfigurationProperty, resolveVariable }) => {
  const email = await resolveVariable("self:custom.stage.alarm_email");
  const namespace = `SupabaseAiGateway/${await resolveVariable("sls:stage")}`;
  const alarms = {};
  for (const [name, known] of Object.entries(FUNCTIONS)) {
    const timeoutSeconds = await resolveConfigurationProperty(["functions", name, "timeout"]);
    Object.assign(alarms, ofFunction(name, known, timeoutSeconds, namespace));
  }
  for (const queue of QUEUES) {
    alarms[`${queue}DeadLettersAlarm`] = alarm(`${queue}: messages that could not be done lie in the dead letters`, {
      Namespace: "AWS/SQS",
      MetricName: "ApproximateNumberOfMessagesVisible",
      Dimensions: [{ Name: "QueueName", Value: { "Fn::GetAtt": [`${queue}DeadLetters`, "QueueName"] } }],
      Statistic: "Maximum",
      Threshold: 1,
    });
  }
  return {
    Resources: { ...topic(email), ...alarms, Dashboard: dashboard(namespace) },
    Outputs: {
      AlarmTopic: { Description: "Where alarms go", Value: { Ref: "AlarmTopic" } },
      DashboardUrl: {
        Value: {
          "Fn::Sub":
            "https://${AWS::Region}.console.aws.amazon.com/cloudwatch/home?region=${AWS::Region}#dashboards/dashboard/${Dashboard}",
        },
      },
    },
  };
};

function ofFunction(name, { resource, name: short, counted }, timeoutSeconds, namespace) {
  const lambda = { Namespace: "AWS/Lambda", Dimensions: [{ Name: "FunctionName", Value: { Ref: resource } }] };
  const found = {
    [`${short}ErrorsAlarm`]: alarm(`${name} raises: an event it can't do, or it was killed`, {
      ...lambda,
      MetricName: "Errors",
      Statistic: "Sum",
      Threshold: 1,
    }),
    [`${short}ThrottlesAlarm`]: alarm(`${name} is asked more often at once than it may run`, {
      ...lambda,
      MetricName: "Throttles",
      Statistic: "Sum",
      Threshold: 1,
    }),
    // A worker ends by itself five seconds before its time is over.
    [`${short}DurationAlarm`]: alarm(`${name} is or was about to be killed for its time`, {
      ...lambda,
      MetricName: "Duration",
      Statistic: "Maximum",
      Threshold: (timeoutSeconds - 1) * 1000,
    }),
  };
  counted.forEach((value, at) => {
    // Answered with a 5xx, or failed in a worker, which Lambda doesn't count: a missing setting is one with the first
    // request.
    const what = at ? "a message, a deferred answer, a model's files" : "a missing setting, the database, models";
    found[`${short}${at ? "Worker" : ""}FailuresAlarm`] = alarm(`${value} fails: ${what}`, {
      Namespace: namespace,
      MetricName: "Errors",
      Dimensions: [{ Name: "function", Value: value }],
      Statistic: "Sum",
      Threshold: 1,
    });
  });
  return found;
}

function alarm(description, metric) {
  return {
    Type: "AWS::CloudWatch::Alarm",
    Properties: {
      AlarmDescription: description,
      AlarmActions: [{ Ref: "AlarmTopic" }],
      OKActions: [{ Ref: "AlarmTopic" }],
      ComparisonOperator: "GreaterThanOrEqualToThreshold",
      EvaluationPeriods: 1,
      Period: 5 * MINUTES,
      TreatMissingData: "notBreaching",
      ...metric,
    },
  };
}

function topic(email) {
  const subscription = {
    Type: "AWS::SNS::Subscription",
    Properties: { TopicArn: { Ref: "AlarmTopic" }, Protocol: "email", Endpoint: email },
  };
  // Not encrypted by a key of its own: CloudWatch may not use the account's, and an alarm says nothing secret.
  return { AlarmTopic: { Type: "AWS::SNS::Topic" }, ...(email ? { AlarmEmail: subscription } : {}) };
}

function dashboard(namespace) {
  const names = Object.values(FUNCTIONS).map(({ resource }) => `\${${resource}}`);
  const counted = Object.values(FUNCTIONS).flatMap((each) => each.counted);
  const lambda = (metric, stat) => names.map((name) => ["AWS/Lambda", metric, "FunctionName", name, { stat }]);
  const ours = (metric, stat) => counted.map((name) => [namespace, metric, "function", name, { stat }]);
  const queues = (metric, suffix) =>
    QUEUES.map((queue) => ["AWS/SQS", metric, "QueueName", `\${${queue}${suffix}.QueueName}`, { stat: "Maximum" }]);
  const widgets = [
    widget("Requests", ours("Requests", "Sum")),
    widget("Failures (5xx)", ours("Errors", "Sum")),
    widget("Invocations", lambda("Invocations", "Sum")),
    widget("Errors and throttles", [...lambda("Errors", "Sum"), ...lambda("Throttles", "Sum")]),
    widget("Request, p95 (ms)", ours("DurationMs", "p95")),
    widget("Of it our own, p95 (ms)", ours("OverheadMs", "p95")),
    widget("To the first token, p95 (ms)", ours("TimeToFirstTokenMs", "p95")),
    widget("Cost (USD)", ours("CostUsd", "Sum")),
    widget("Waiting in queues", queues("ApproximateNumberOfMessagesVisible", "Queue")),
    widget("The oldest of it (s)", queues("ApproximateAgeOfOldestMessage", "Queue")),
    widget("Dead letters", queues("ApproximateNumberOfMessagesVisible", "DeadLetters")),
    widget("Running at once", lambda("ConcurrentExecutions", "Maximum")),
  ];
  const placed = widgets.map((each, at) => ({ ...each, x: (at % 3) * 8, y: Math.floor(at / 3) * 6 }));
  return {
    Type: "AWS::CloudWatch::Dashboard",
    Properties: { DashboardBody: { "Fn::Sub": JSON.stringify({ widgets: placed }) } },
  };
}

function widget(title, metrics) {
  const properties = { title, metrics, region: "${AWS::Region}", period: 5 * MINUTES, view: "timeSeries" };
  return { type: "metric", width: 8, height: 6, properties };
}
