"use strict";
// One page beside the API. All that comes from the service is put in as text, never as markup.
const $ = (id) => document.getElementById(id);
const history_ = [], titles = new Map(); // of items that were found or answered
let described = null, answered = null; // what is served; the answer that is shown

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

async function call(path, body) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if ($("token").value) headers.Authorization = "Bearer " + $("token").value;
  const reply = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (reply.status === 401) $("access").hidden = false;
  const told = await reply.json().catch(() => ({}));
  if (!reply.ok) throw Object.assign(new Error(problem(reply.status, told.detail)), { status: reply.status });
  return told;
}

function problem(status, detail) {
  if (!Array.isArray(detail)) return `${status}: ${detail || "no reason given"}`;
  return detail.map((one) => `${one.loc.slice(1).join(" > ")}: ${one.msg}`).join("; ");
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function describe() {
  try {
    described = await call("/v1/model");
  } catch (error) {
    $("versions").textContent = String(error.message);
    return;
  }
  $("versions").textContent = "Serving " + described.versions;
  $("compare").hidden = onTrial().length === 0;
  $("before").hidden = described.logged === null;
  const box = $("context");
  box.querySelectorAll("label, input").forEach((old) => old.remove());
  for (const name of described.context) {
    const id = "context-" + name;
    box.append(element("label", name + (described.lists.includes(name) ? " (a list, by commas)" : ""), { for: id }));
    box.append(element("input", undefined, { id, "data-feature": name, autocomplete: "off", maxlength: "4000" }));
  }
  for (const [name, value] of Object.entries(described.example)) {
    const input = box.querySelector(`[data-feature="${CSS.escape(name)}"]`);
    if (input && value !== null) input.value = Array.isArray(value) ? value.join(", ") : String(value);
  }
}

function showHistory() {
  const list = $("history");
  list.replaceChildren();
  history_.forEach((item, place) => {
    const row = element("li", item + " ");
    const gone = element("button", "remove", { type: "button", class: "small", "aria-label": `Remove ${item} from the history` });
    gone.addEventListener("click", () => { history_.splice(place, 1); showHistory(); $("find").focus(); });
    row.append(gone);
    if (titles.get(item)) row.append(element("small", titles.get(item)));
    list.append(row);
  });
}

function add(item) {
  history_.push(item);
  showHistory();
  say(`${item} was added to the history.`);
}

let asked = 0;
$("find").addEventListener("input", async () => {
  const text = $("find").value.trim(), mine = ++asked;
  if (!text) return;
  try {
    const found = await call("/v1/items?find=" + encodeURIComponent(text));
    if (mine !== asked) return;
    for (const one of found.items) titles.set(one.item, one.title);
    $("found").replaceChildren(...found.items.map((one) => element("option", one.title, { value: one.item })));
  } catch (error) { say(String(error.message), true); }
});
$("find").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  const text = $("find").value.trim();
  if (text) { add(text); $("find").value = ""; }
});
for (const id of ["retrieve", "early", "k"])
  $(id).addEventListener("input", () => { document.querySelector(`output[for=${id}]`).textContent = $(id).value; });

function value(name, text) {
  if (described.lists.includes(name)) return text.split(",").map((part) => part.trim()).filter(Boolean);
  if (text === "") return null;
  return described.numbers.includes(name) ? Number(text) : text;
}

function request() {
  const body = { history: history_, context: {}, trace: true, where: {}, retrieve: +$("retrieve").value, early: +$("early").value, k: +$("k").value };
  document.querySelectorAll("[data-feature]").forEach((input) => { body.context[input.dataset.feature] = value(input.dataset.feature, input.value.trim()); });
  if ($("user").value.trim()) body.user = $("user").value.trim();
  if ($("preference").value.trim()) body.preference = $("preference").value.trim();
  if ($("deadline").value) body.deadline_ms = +$("deadline").value;
  for (const line of $("where").value.split("\n").map((one) => one.trim()).filter(Boolean)) {
    const [name, ...rest] = line.split("=");
    const values = rest.join("=").split("|").map((one) => one.trim());
    body.where[name.trim()] = values.map((one) => described.features.columns[name.trim()] === "number" ? Number(one) : one);
  }
  return body;
}

async function recommend() {
  const told = await call("/v1/recommend", request());
  show(told);
  const late = told.late.length ? ` Late: ${told.late.join(", ")}; the order is that of the stage before.` : "";
  const arm = told.arm ? ` By arm ${told.arm}.` : "", lost = told.logged === false ? " It may not be logged: no feedback on it." : "";
  say(`${told.items.length} items in ${Math.round(told.timings_ms.total)} ms, of ${told.trace.length} candidates.${arm}${late}${lost}`, told.late.length > 0);
  return $("answer");
}

async function run(what, byLink = false) {
  say("Asking ...");
  try {
    if (described === null) await describe();
    const section = await what();
    if (!byLink) section.focus(); // the reader of a link begins at the top
  } catch (error) { say(String(error.message), true); }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const by = event.submitter ? event.submitter.id : "";
  run(by === "compare" ? compare : by === "before" ? before : recommend);
});

const TITLES = { retrieve: "Retrieved", early: "Early ranker", late: "Late ranker" };
const NEXT = { retrieve: ["early", "late", "shown"], early: ["late", "shown"], late: ["shown"] };
const WHY = { without_features: "no features", filtered: "filtered out", unavailable: "taken out" };

function show(told) {
  answered = told;
  for (const row of told.trace) titles.set(row.item, row.title);
  showHistory();
  const stages = ["retrieve", "early", "late"].filter((stage) => stage in told.models);
  $("stages").replaceChildren(...stages.map((stage) => table(stage, told, told.logged === true && stage === stages.at(-1))));
}

function table(stage, told, asksFeedback) {
  const rows = told.trace.filter((row) => stage in row.scores).sort((a, b) => b.scores[stage] - a.scores[stage]);
  const caption = `${TITLES[stage]}: ${rows.length} candidates, ${told.models[stage]}, ${told.timings_ms[stage].toFixed(1)} ms`;
  return tableOf(caption, ["Rank", "Item", "Score", asksFeedback ? "Then, and feedback" : "Then"], rows.map((row, place) => {
    const goes = NEXT[stage].includes(row.reached);
    const line = lineOf(goes ? "" : "cut", place + 1, row.item, row.title, row.scores[stage]);
    const then = element("td", row.position !== null ? `shown ${row.position + 1}` : goes ? "passed on" : WHY[row.reached] || "cut");
    if (row.position !== null) {
      const more = element("button", "+ history", { type: "button", class: "small", "aria-label": `Add ${row.item} to the history` });
      more.addEventListener("click", () => add(row.item));
      then.append(" ", more);
    }
    if (asksFeedback && row.position !== null) then.append(feedbackOn(told.request, row.item));
    line.append(then);
    return line;
  }));
}

// A link can say what to ask: /play?history=a,b&k=5&where=kind%3Dred&context.device=phone&ask, and &compare, &before
async function fromLink() {
  const given = new URLSearchParams(location.search);
  history_.push(...(given.get("history") || "").split(",").map((item) => item.trim()).filter(Boolean));
  showHistory();
  await describe();
  for (const id of ["user", "preference", "retrieve", "early", "k", "deadline", "where"]) if (given.has(id)) $(id).value = given.get(id);
  for (const id of ["retrieve", "early", "k"]) document.querySelector(`output[for=${id}]`).textContent = $(id).value;
  document.querySelectorAll("[data-feature]").forEach((input) => {
    const name = "context." + input.dataset.feature;
    if (given.has(name)) input.value = given.get(name);
  });
  for (const [word, what] of Object.entries({ ask: recommend, compare, before }))
    if (given.has(word) && described !== null) await run(what, true);
}

$("token").addEventListener("change", describe);
fromLink();
