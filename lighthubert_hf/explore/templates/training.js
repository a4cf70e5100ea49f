// The page of a distillation run: its curves, and while it runs and a server is there, the newest of them.
const SECONDS = 5; // between questions for newer data
const PLOTS = [
  ["loss", "Training loss", {}],
  ["validation", "Validation loss of subnets", {}],
  ["lr", "Learning rate", {}],
  ["gradient_norm", "Norm of the gradient", {logY: true}],
  ["audio_per_second", "Seconds of audio per second", {}],
];

function points(values, name) {
  return {x: values.map(v => v[0]), y: values.map(v => v[1]), name, type: "scatter",
    mode: values.length > 60 ? "lines" : "lines+markers"};
}

function update() {
  const facts = [`step ${data.step}`];
  if (data.audio_seconds) facts.push(`${(data.audio_seconds / 3600).toFixed(2)} h of audio`);
  if (data.skipped_steps) facts.push(`${data.skipped_steps} ${data.skipped_steps === 1 ? "step" : "steps"} skipped`);
  data.facts = facts;
  fillHeader();
  for (const [key, title, options] of PLOTS) {
    const traces = key === "validation" ? Object.entries(data.validation).map(([name, v]) => points(v, name))
      : [points(data.curves[key], title)];
    document.getElementById("card-" + key).hidden = !traces.some(trace => trace.x.length);
    draw("plot-" + key, traces, {x: "step", y: title, showlegend: key === "validation", ...options});
  }
}

async function refresh() {
  try {
    const answer = await fetch("data.json");
    if (answer.ok) {
      data = await answer.json();
      update();
    }
  } finally {
    setTimeout(refresh, SECONDS * 1000);
  }
}

document.getElementById("main").append(...PLOTS.map(([key, title]) => element("section", {class: "card", id: "card-" + key},
  element("h2", {}, title), element("div", {id: "plot-" + key, class: "plot low", role: "img", "aria-label": title}))));
document.getElementById("main").classList.add("columns");
update();
dark.addEventListener("change", update);
if (live) setTimeout(refresh, SECONDS * 1000);
