// The page of the service: everything it does goes through the public endpoints under /v1/runs.
// Prompts, verdicts and errors come from users and models: they are inserted as text, never as HTML.

const $ = (id) => document.getElementById(id);
const MARKS = { yes: "✓", no: "✗", unsure: "?" };
const OUTCOMES = {
  solved: ["yes", "solved", "Every requirement passed."],
  accepted: ["yes", "accepted", "You accepted it."],
  rounds: ["unsure", "best effort", "The rounds ran out. This is the best attempt."],
  budget: ["unsure", "best effort", "The budget was spent. This is the best attempt."],
  stalled: ["unsure", "best effort", "The last rounds brought no better image. This is the best attempt."],
  cancelled: ["unsure", "stopped", "The run was stopped. This is the best so far."],
  failed: ["no", "failed", "A model failed."],
};
// For a run that has not ended, or has no outcome.
const STATUSES = { queued: "waiting its turn", running: "drawing", waiting: "asks you", failed: "failed", cancelled: "stopped", done: "done" };

const KINDS = { failed: "no", cancelled: "unsure", waiting: "unsure" };
const WITHOUT_IMAGE = { cancelled: "The run was stopped before it made an image.", done: "The run made no image." };

let current = null; // the run on the stage, as GET /v1/runs/{id} returns it
let selected = null; // the SHA-256 of the attempt that the user chose to look at; null for the best
let following = null; // an AbortController: stops the stream that is being read
let nextPage = null;

// --- requests to the service ----------------------------------------------------------------------------------------

function headers(more = {}) {
  const key = sessionStorage.getItem("gems-key");
  return { ...(key ? { authorization: `Bearer ${key}` } : {}), ...more };
}

async function call(path, body, more = {}) {
  const options = body === undefined ? { headers: headers() } : {
    method: "POST", headers: headers({ "content-type": "application/json", ...more }), body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The service cannot be reached. Accepted runs are resumed when it is started again.");
  }
  if (answer.ok) return answer.json();
  if (answer.status === 401) $("key-dialog").showModal();
  const errorBody = await answer.json().catch(() => null);
  throw new Error(errorBody?.error?.message ?? `The service answered ${answer.status}.`);
}

async function* serverSent(path, signal) {
  const answer = await fetch(path, { headers: headers(), signal });
  if (!answer.ok) throw new Error(`The service answered ${answer.status}.`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const field = (name) => block.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("data")) yield { event: field("event"), ...JSON.parse(field("data")) };
    }
  }
}

// --- small helpers --------------------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function showProblem(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message : "";
}

async function guarded(work) {
  showProblem(null);
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") showProblem(error);
    return undefined;
  }
}

const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

// --- the run on the stage -------------------------------------------------------------------------------------------

function draw() {
  $("stage").hidden = !current;
  if (!current) return;
  const attempt = current.attempts.find((a) => a.image.sha256 === selected) ?? current.attempts[current.best] ?? null;
  $("title").textContent = current.prompt;
  drawImage(attempt);
  drawStatus();
  drawRequirements(attempt ? attempt.requirements : current.requirements);
  drawReview();
  drawAttempts(attempt);
  drawActions(attempt);
  const draft = attempt && current.ended_at ? attempt.prompt : current.draft || attempt?.prompt;
  $("draft").textContent = draft ? `Drawn from: ${draft}` : "";
}

function drawImage(attempt) {
  const frame = $("frame");
  if (!attempt) {
    frame.replaceChildren(make("p", { textContent: withoutImage() }));
    $("caption").textContent = "";
    return;
  }
  const old = frame.querySelector("img");
  if (old?.dataset.sha256 !== attempt.image.sha256) {
    const image = make("img", { src: attempt.image.url, alt: `Attempt of round ${attempt.round} at: ${current.prompt}` });
    image.dataset.sha256 = attempt.image.sha256;
    frame.replaceChildren(image);
  }
  const best = attempt === current.attempts[current.best] ? ", the best" : "";
  const score = attempt.total ? `score ${attempt.score.toFixed(2)}` : unchecked();
  $("caption").textContent = `Round ${attempt.round}${best}, seed ${attempt.seed}, ${score}`;
}

// What is said of an image that has no verdicts: after the end of the run, it gets none.
function unchecked() {
  return current.ended_at ? "not checked" : "not checked yet";
}

// What the frame says while the run has no image.
function withoutImage() {
  if (current.ended_at || current.error) return "No image was made.";
  if (current.status === "queued") return "The run waits its turn.";
  return current.status === "running" ? "The first image is on its way." : "There is no image yet.";
}

// The colour and the words for how a run stands. A run that ended without passing is no success.
function standing(run) {
  const [kind, word, sentence] = OUTCOMES[run.outcome] ?? [KINDS[run.status] ?? "", STATUSES[run.status], ""];
  return run.attempts.length || !run.ended_at ? [kind, word, sentence] : [kind, word, WITHOUT_IMAGE[run.status] ?? ""];
}

function drawStatus() {
  const [kind, word, sentence] = standing(current);
  $("chip").className = `chip ${kind}`;
  $("chip").textContent = word;
  const usage = current.usage.images
    ? `${plural(current.usage.images, "image")}, ${plural(current.usage.chat_calls, "chat call")}, ${current.usage.seconds.toFixed(1)} s of work.` : "";
  const message = current.error ?? `${sentence} ${current.ended_at ? usage : current.message ?? ""}`.trim();
  if ($("told").textContent !== message) $("told").textContent = message;
  $("bar").hidden = !(current.status === "running" && current.progress > 0);
  $("bar").firstElementChild.style.width = `${100 * (current.progress ?? 0)}%`;
}

function drawRequirements(requirements) {
  $("requirements").replaceChildren(...requirements.map((r) => {
    const reason = r.answer && r.answer !== "yes" && r.reason ? ` ${r.reason}` : "";
    const from = r.skill ? ` (${r.skill})` : "";
    return make("li", { className: r.answer ?? "" },
      make("span", { className: "mark", textContent: MARKS[r.answer] ?? "·", ariaLabel: r.answer ?? "not checked yet" }),
      make("span", {}, r.question, make("small", { textContent: reason + from })));
  }));
}

function drawAttempts(attemptOnStage) {
  $("rounds-title").hidden = current.attempts.length === 0;
  $("rounds").replaceChildren(...current.attempts.map((attempt) => {
    const score = attempt.total ? `${attempt.passed} of ${attempt.total} passed` : unchecked();
    const judged = attempt.judged ? `, ${attempt.judged}` : "";
    const button = make("button", { type: "button" },
      make("img", { src: `${attempt.image.url}?size=256`, alt: "", loading: "lazy" }),
      make("p", {}, `Round ${attempt.round}, ${attempt.strategy}${judged}`, make("br"), score));
    button.addEventListener("click", () => { selected = attempt.image.sha256; draw(); });
    return make("li", { className: attempt === attemptOnStage ? "shown" : "" }, button);
  }));
}

function drawActions(attempt) {
  const actions = [];
  if (current.report) actions.push(make("a", { className: "button", href: current.report, target: "_blank", textContent: "Open the report" }));
  if (attempt) {
    actions.push(make("a", { className: "button", href: attempt.image.url, download: `gems-${attempt.image.sha256.slice(0, 8)}.png`, textContent: "Download" }));
  }
  if (current.status === "running" || current.status === "queued") {
    const stop = make("button", { type: "button", textContent: "Stop" });
    stop.addEventListener("click", () => guarded(async () => { stop.disabled = true; await call(`/v1/runs/${current.id}/cancel`, {}); await show(current.id); }));
    actions.push(stop);
  }
  $("actions").replaceChildren(...actions);
}

function drawReview() {
  const form = $("review");
  const question = current.status === "waiting" ? current.review : null;
  form.hidden = !question;
  if (!question || form.dataset.of === current.review.image.sha256 + current.review.fault) return;
  form.dataset.of = current.review.image.sha256 + current.review.fault;
  const state = question.would_end ? "The run would end with this image." : "This is the best image so far.";
  const words = make("textarea", { id: "words", rows: 2, maxLength: 4000 });
  const label = make("label", { htmlFor: "words", textContent: "What is wrong, or another prompt (optional)" });
  const may = (action) => question.actions.includes(action);
  const buttons = [
    ["accept", "Accept", () => ({ action: "accept", ...(selected ? { image: selected } : {}) })],
    ["reject", "Try again", () => ({ action: "reject", comment: words.value.slice(0, 1000) })],
    ["edit_prompt", "Draw my prompt", () => ({ action: "edit_prompt", prompt: words.value })],
    ["stop", "Stop here", () => ({ action: "stop" })],
  ].filter(([action]) => may(action)).map(([action, text, answer]) => {
    const button = make("button", { type: "button", textContent: text, className: action === "accept" ? "main" : "" });
    button.addEventListener("click", () => guarded(async () => {
      for (const other of form.querySelectorAll("button")) other.disabled = true;
      try {
        await call(`/v1/runs/${current.id}/review`, answer());
        selected = null;
        delete form.dataset.of;
        await show(current.id);
      } finally {
        for (const other of form.querySelectorAll("button")) other.disabled = false;
      }
    }));
    return button;
  });
  form.replaceChildren(
    make("p", {}, make("strong", { textContent: `${state} Is it right?` })),
    ...(question.fault ? [make("p", { className: "problem", textContent: question.fault })] : []),
    ...(may("reject") ? [label, words] : []),
    make("div", { className: "actions" }, ...buttons),
    requirementsEditor(question));
}

function requirementsEditor(question) {
  const lines = make("textarea", { rows: Math.min(8, question.requirements.length + 1), id: "lines",
    value: question.requirements.map((r) => r.question).join("\n") });
  const button = make("button", { type: "button", textContent: "Check against these" });
  button.addEventListener("click", () => guarded(async () => {
    const kinds = new Map(question.requirements.map((r) => [r.question, r.kind]));
    const requirements = lines.value.split("\n").map((line) => line.trim()).filter(Boolean)
      .map((line) => ({ question: line, kind: kinds.get(line) ?? "other" }));
    await call(`/v1/runs/${current.id}/review`, { action: "edit_requirements", requirements });
    delete $("review").dataset.of;
    await show(current.id);
  }));
  return make("details", {}, make("summary", { textContent: "Change the requirements" }),
    make("label", { htmlFor: "lines", textContent: "One yes/no question a line" }), lines, make("p", { className: "actions" }, button));
}

// --- following a run ------------------------------------------------------------------------------------------------

const UPDATES = {
  begin: () => ({ status: "running", message: "Planning." }),
  requirements: (e) => ({ requirements: e.requirements.map((r) => ({ ...r, answer: null, reason: "" })) }),
  memories: (e) => (e.count ? { message: `Remembered ${plural(e.count, "similar run")}.` } : {}),
  prompt: (e) => ({ draft: e.proposal ? `${current.draft}\n${e.prompt}` : e.prompt, message: `Round ${e.round}: drawing.`, progress: 0.02 }),
  step: (e) => ({ progress: e.step / e.steps }),
  image: () => ({ message: "Checking.", progress: 0 }),
  attempt: (e) => ({ message: `${e.passed} of ${e.total} passed.` }),
};

function applyEvent(event) {
  if (event.event === "run") {
    const { message, progress } = current ?? {};
    current = event;
    if (!event.ended_at) Object.assign(current, { message, progress });
  } else if (event.event === "image") {
    current.attempts.push(newAttempt(event));
    current.best ??= 0;
    selected = event.sha256;
    Object.assign(current, UPDATES.image());
  } else if (event.event === "verdict") {
    const attempt = current.attempts.find((a) => a.round === event.round && a.candidate === event.candidate);
    const requirement = attempt?.requirements.find((r) => r.id === event.requirement_id);
    if (requirement) Object.assign(requirement, { answer: event.answer, reason: event.reason, confidence: event.confidence });
  } else if (UPDATES[event.event]) {
    Object.assign(current, UPDATES[event.event](event));
    if (event.event === "attempt") {
      const attempt = current.attempts.find((a) => a.round === event.round && a.candidate === event.candidate);
      if (attempt) Object.assign(attempt, { score: event.score, passed: event.passed, total: event.total });
    }
  }
}

function newAttempt(event) {
  return {
    round: event.round, candidate: event.candidate, strategy: event.strategy, prompt: event.prompt, seed: event.seed,
    score: 0, passed: 0, total: 0, judged: "", experience: "", image: { url: event.url, sha256: event.sha256 },
    requirements: current.requirements.map((r) => ({ ...r, answer: null, reason: "" })),
  };
}

async function show(id) {
  following?.abort();
  following = new AbortController();
  const mine = following;
  const run = await call(`/v1/runs/${encodeURIComponent(id)}`);
  if (mine.signal.aborted) return; // the user has chosen another run meanwhile
  if (current?.id !== run.id) selected = null;
  current = run;
  draw();
  if (run.status !== "queued" && run.status !== "running") return;
  let frame = 0;
  for await (const event of serverSent(`/v1/runs/${run.id}/events`, mine.signal)) {
    if (mine.signal.aborted) return;
    if (event.event === "run" && event.status !== "running") selected = null;
    applyEvent(event);
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  }
  if (current.status === "waiting") $("review").querySelector("button")?.focus();
  await list();
}

// --- past runs ------------------------------------------------------------------------------------------------------

async function list(before = null) {
  const page = await call(`/v1/runs?limit=10${before === null ? "" : `&before=${before}`}`);
  const rows = page.data.map((run) => {
    const [kind, word] = standing(run);
    const when = new Date(1000 * run.created_at);
    return make("li", {}, make("a", { href: `#${run.id}` },
      make("span", { className: `chip ${kind}`, textContent: word }),
      make("span", { className: "prompt", textContent: run.prompt }),
      make("time", { dateTime: when.toISOString(), textContent: when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) })));
  });
  if (before === null) $("past").replaceChildren(...rows);
  else $("past").append(...rows);
  nextPage = page.next;
  $("more").hidden = nextPage === null;
  $("empty").hidden = $("past").children.length > 0;
}

// --- what the user does ---------------------------------------------------------------------------------------------

function settingsOf(form) {
  const settings = {};
  for (const name of ["max_rounds", "candidates", "seed"]) if (form[name].value !== "") settings[name] = Number(form[name].value);
  if (form.review.value) settings.review = form.review.value;
  for (const name of ["memory", "skills"]) if (!form[name].checked) settings[name] = false;
  return settings;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  const button = form.querySelector("button");
  guarded(async () => {
    button.disabled = true;
    try {
      // An unreliable network may send the request twice; with the key it still begins one run only.
      const run = await call("/v1/runs", { prompt: form.prompt.value, settings: settingsOf(form) }, { "idempotency-key": crypto.randomUUID() });
      location.hash = run.id;
    } finally {
      button.disabled = false;
    }
  });
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});

$("more").addEventListener("click", () => guarded(() => list(nextPage)));
$("key-button").addEventListener("click", () => $("key-dialog").showModal());
$("key-form").addEventListener("submit", () => {
  sessionStorage.setItem("gems-key", $("key").value.trim());
  $("key").value = "";
  begin();
});

function begin() {
  return guarded(async () => {
    const id = decodeURIComponent(location.hash.slice(1));
    if (current?.id !== id) {
      following?.abort();
      current = null; // another run's image must not stand there, even if this one cannot be loaded
      draw();
    }
    await list();
    $("limits").textContent = (await call("/v1/models")).data[0].description;
    if (id.startsWith("run-")) await show(id);
  });
}

addEventListener("hashchange", begin);
begin();
