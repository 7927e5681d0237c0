"use strict";
// What stands beside an answer: feedback on it, the same request by each version on trial, and earlier answers. Used by play.js.

function tableOf(caption, columns, lines) {
  const made = element("table");
  made.append(element("caption", caption));
  const head = element("tr");
  for (const name of columns) head.append(element("th", name, { scope: "col" }));
  made.append(element("thead"), element("tbody"));
  made.tHead.append(head);
  made.tBodies[0].append(...lines);
  return made;
}

function lineOf(mark, place, item, title, score) {
  const line = element("tr", undefined, mark ? { class: mark } : {});
  line.append(element("td", String(place), { class: "number" }));
  const name = element("th", undefined, { scope: "row" });
  name.append(element("span", item, { class: "name" }), element("small", title));
  line.append(name, element("td", score === null ? "" : score.toPrecision(3), { class: "number" }));
  return line;
}

// Feedback: what a user would have done.
const REFUSED = { 404: "unknown", 409: "conflicting", 410: "late", 503: "not kept" };

function feedbackOn(request, item) {
  const labels = element("div", undefined, { class: "labels", role: "group", "aria-label": `Feedback on ${item}` });
  for (const task of described.logged.tasks)
    for (const label of [1, 0]) {
      const text = label ? task : `no ${task}`;
      const button = element("button", text, { type: "button", class: "small", "aria-pressed": "false", "aria-label": `${text}: ${item}` });
      button.addEventListener("click", () => tell(button, { request, item, labels: { [task]: label } }, `${text}: ${item}`));
      labels.append(button);
    }
  return labels;
}

async function tell(button, event, what) {
  try {
    const told = await call("/v1/feedback", event);
    button.setAttribute("aria-pressed", "true");
    say(`Feedback ${told.outcome}. ${what}`);
  } catch (error) { say(`Feedback ${REFUSED[error.status] || "refused"}. ${what}. ${error.message}`, true); }
}

// Versions side by side: the first one's places are what the others are held against.
function onTrial() {
  const arms = Object.keys(described.arms);
  return described.shadow === null ? (arms.length > 1 ? arms : []) : [...(arms.length ? arms : ["all"]), "shadow"];
}

async function compare() {
  const now = await call("/v1/model");
  Object.assign(described, { arms: now.arms, shadow: now.shadow }); // an experiment may have changed since
  const names = onTrial(), asked = request();
  if (!names.length) throw new Error("Nothing is on trial any more.");
  const told = await Promise.all(names.map((arm) => call("/v1/recommend", { ...asked, arm })));
  const places = told.map((one) => new Map(one.items.map((row, place) => [row.item, place + 1])));
  $("arms").replaceChildren(...told.map((one, column) => armTable(names, one, column, places)));
  $("compared").hidden = false;
  const parts = names.slice(1).map((name, i) => {
    const both = [...places[i + 1]].filter(([item]) => places[0].has(item));
    const same = both.filter(([item, place]) => places[0].get(item) === place);
    return `${name} shows ${both.length} of the ${places[0].size} items of ${names[0]}, ${same.length} in the same place`;
  });
  say(`${parts.join("; ")}.`);
  return $("compared");
}

function armTable(names, told, column, places) {
  const titles = new Map(told.trace.map((row) => [row.item, row.title]));
  const models = ["retrieve", "early", "late"].filter((stage) => stage in told.models).map((stage) => told.models[stage]);
  const mixed = told.arm === "mixed" ? ", while a version was changing" : "", late = told.late.length ? `, late: ${told.late.join(", ")}` : "";
  const caption = `${names[column] === "shadow" ? "Shadow" : `Arm ${names[column]}`}: ${models.join(", ")}${mixed}${late}`;
  return tableOf(caption, ["Place", "Item", "Score", column ? `Beside ${names[0]}` : "Elsewhere"], told.items.map((row, i) => {
    const without = names.filter((_, other) => other !== column && !places[other].has(row.item));
    const words = without.length === names.length - 1 ? "only here" : column ? moved(i + 1, places[0].get(row.item), names[0]) : without.length ? `not in ${without.join(", ")}` : "in all";
    const line = lineOf(["same place", "in all"].includes(words) ? "" : "other", i + 1, row.item, titles.get(row.item) || "", row.score);
    line.append(element("td", words));
    return line;
  }));
}

function moved(place, was, where) {
  if (was === undefined) return `not in ${where}`;
  return place === was ? "same place" : `${place < was ? "up" : "down"} ${Math.abs(place - was)}, there ${was}`;
}

// How it was answered before: out of the log of decisions.
async function before() {
  const told = await call("/v1/earlier", request());
  const now = answered && new Map(answered.items.map((row, place) => [row.item, place + 1]));
  const columns = ["Place", "Item", "Score", ...(now ? ["Beside the answer above"] : [])];
  const others = told.answers.filter((one) => !answered || one.request !== answered.request); // not the one above itself
  $("answers").replaceChildren(...others.map((one) => {
    const models = ["retrieve", "early", "late"].filter((stage) => stage in one.models).map((stage) => one.models[stage]);
    const question = told.by === "question" ? "" : one.same_question ? ", the same question" : ", another question";
    const made = tableOf("", columns, one.items.map((row, i) => {
      const words = now ? (now.has(row.item) ? moved(i + 1, now.get(row.item), "it") : "only then") : "";
      const line = lineOf(now && words !== "same place" ? "other" : "", i + 1, row.item, row.title, row.score);
      if (now) line.append(element("td", words));
      return line;
    }));
    const when = new Date(one.time_ms);
    made.caption.append(element("time", when.toLocaleString(), { datetime: when.toISOString() }), `: ${models.join(", ")}${one.arm === "all" ? "" : `, arm ${one.arm}`}${question}`);
    return made;
  }));
  $("earlier-of").textContent = told.by === "user" ? `The newest answers to user ${$("user").value.trim()}.` : "No user is given: answers to this very history, preference and context.";
  $("earlier").hidden = false;
  const bounds = told.whole ? "" : ` The search ended after ${told.rows} rows of the log: there may be older ones.`;
  say(`${others.length === 1 ? "1 earlier answer" : `${others.length || "No"} earlier answers`}.${bounds}`);
  return $("earlier");
}
