// The page of a search: limits as sliders, the front within them, two subnets beside each other and the teacher.
const sign = data.maximize ? -1 : 1;
const best = (a, b) => sign * (a.score - b.score);
const limits = {}; // by cost, what the sliders say
const spans = {}; // by cost, the least and the most of any subnet
let axis = data.axis, target = "a", chosen = {a: null, b: null};

for (const {name} of data.costs) {
  const values = data.subnets.map(s => s.costs[name]);
  spans[name] = [Math.min(...values), Math.max(...values)];
  limits[name] = data.limits[name] ?? spans[name][1];
}

function show(name, value) {
  const unit = data.costs.find(c => c.name === name).unit;
  if (unit === "ms") return value.toPrecision(3) + " ms";
  const [size, letter] = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]].find(u => Math.abs(value) >= u[0]) || [1, ""];
  return Number((value / size).toPrecision(3)) + (unit ? " " + letter + unit : letter);
}

const within = s => data.costs.every(({name}) => s.costs[name] <= limits[name] * (1 + 1e-9));

// Of the subnets within the sliders those that no other beats in score and in the shown cost.
function front(subnets) {
  const sorted = [...subnets].sort((s, t) => s.costs[axis] - t.costs[axis] || best(s, t));
  return sorted.filter((s, i) => sorted.slice(0, i).every(t => best(s, t) < 0));
}

function build() {
  const sliders = data.costs.map(({name}) => {
    const [low, high] = spans[name], output = element("output", {for: "limit-" + name}, "");
    const input = element("input", {type: "range", id: "limit-" + name, "data-cost": name, min: 0, max: 1000, step: 1});
    input.value = high > low ? Math.ceil((Math.min(limits[name], high) - low) / (high - low) * 1000) : 1000;
    input.addEventListener("input", () => {
      limits[name] = Number(input.value) === 1000 ? high : low + (high - low) * input.value / 1000;
      update();
    });
    return element("div", {class: "slider"}, element("label", {for: "limit-" + name}, name), input, output);
  });
  const select = element("select", {id: "axis", onchange: () => { axis = select.value; update(); }},
    ...data.costs.map(({name}) => element("option", {value: name, selected: name === axis}, name)));
  const radio = key => element("label", {}, element("input", {type: "radio", name: "target", value: key,
    checked: key === target, onchange: () => { target = key; }}), element("span", {class: key + "-mark"}, key.toUpperCase()));
  document.getElementById("main").append(
    element("div", {class: "columns"},
      element("section", {class: "card"},
        element("div", {class: "controls"},
          element("label", {}, "Horizontal axis ", select),
          element("fieldset", {}, element("span", {}, "A touched subnet becomes"), radio("a"), radio("b"))),
        element("div", {id: "plot", class: "plot", tabindex: 0, role: "application",
          "aria-label": "Score of every subnet against its cost. Left and right arrows walk along the front."}),
        element("p", {class: "soft"}, element("kbd", {}, "←"), " ", element("kbd", {}, "→"), " walk along the front, ",
          element("kbd", {}, "A"), " ", element("kbd", {}, "B"), " say which of the two changes.")),
      element("section", {class: "card"}, element("h2", {}, "Limits"), ...sliders,
        element("p", {id: "within", "aria-live": "polite"}), element("button", {id: "take-best",
          onclick: () => choose(bestWithin())}, "Look at the best"))),
    element("section", {class: "card", id: "details", "aria-live": "polite"}),
    element("div", {class: "columns"},
      element("section", {class: "card"}, element("h2", {}, "The front within the limits"),
        element("div", {class: "scroll"}, element("table", {id: "front"}))),
      element("section", {class: "card"}, element("h2", {}, "How the search went"),
        element("p", {class: "soft"}, "Share of the box between the best and the worst values that the front dominates."),
        element("div", {id: "history", class: "plot low"}))));
  document.getElementById("plot").addEventListener("keydown", walk);
}

function bestWithin() {
  return data.subnets.filter(within).sort(best)[0] || null;
}

function choose(subnet) {
  if (!subnet) return;
  chosen[target] = subnet;
  update();
}

function walk(event) {
  const key = event.key.toLowerCase();
  if (key === "a" || key === "b") {
    document.querySelector(`input[name=target][value=${key}]`).click();
  } else if (key === "arrowleft" || key === "arrowright") {
    const line = front(data.subnets.filter(within)), at = line.indexOf(chosen[target]);
    choose(line[Math.max(0, Math.min(line.length - 1, at < 0 ? 0 : at + (key === "arrowright" ? 1 : -1)))]);
  } else {
    return;
  }
  event.preventDefault();
}

function update() {
  const allowed = data.subnets.filter(within), line = front(allowed), first = bestWithin();
  for (const {name} of data.costs) {
    document.querySelector(`output[for="limit-${CSS.escape(name)}"]`).value = show(name, Math.min(limits[name], spans[name][1]));
  }
  document.getElementById("within").textContent = first
    ? `${allowed.length} of ${data.subnets.length} subnets are within the limits. Best: ${first.name}, ${data.score} ${first.score.toPrecision(4)}.`
    : "No subnet is within these limits.";
  document.getElementById("take-best").disabled = !first;
  plotSubnets(allowed, line);
  fillFront(line);
  fillDetails();
}

function plotSubnets(allowed, line) {
  const trace = (subnets, name, marker, more = {}) => ({x: subnets.map(s => s.costs[axis]), y: subnets.map(s => s.score),
    customdata: subnets.map(s => data.subnets.indexOf(s)), text: subnets.map(hover), hoverinfo: "text", name,
    mode: "markers", type: "scatter", marker, ...more});
  const on = new Set(line);
  const traces = [
    trace(data.subnets.filter(s => !within(s)), "over a limit", {color: colour("dim"), size: 6, symbol: "x"}),
    trace(allowed.filter(s => !on.has(s)), "within", {color: colour("accent"), size: 7, opacity: 0.45}),
    trace(line, "front", {color: colour("accent"), size: 10}, {mode: "lines+markers", line: {color: colour("accent")}}),
  ];
  for (const key of ["a", "b"]) {
    if (chosen[key]) traces.push(trace([chosen[key]], key.toUpperCase(), {color: "rgba(0,0,0,0)", size: 18,
      line: {color: colour(key), width: 3}, symbol: key === "a" ? "circle" : "square"}));
  }
  const shapes = [];
  if (limits[axis] < spans[axis][1]) {
    shapes.push({type: "line", x0: limits[axis], x1: limits[axis], yref: "paper", y0: 0, y1: 1,
      line: {color: colour("warn"), dash: "dash", width: 1}});
  }
  if (data.baseline !== null) {
    traces.push({x: spans[axis], y: [data.baseline, data.baseline], mode: "lines", name: "always the mean",
      hoverinfo: "name", line: {color: colour("dim"), dash: "dot"}, visible: "legendonly"});
  }
  draw("plot", traces, {x: axis, y: data.score, shapes});
}

function hover(s) {
  return plain(s.name) + "<br>" + plain(data.score) + " " + s.score.toPrecision(4) + "<br>" +
    data.costs.map(({name}) => plain(name + " " + s.shown[name])).join("<br>");
}

function fillFront(line) {
  const head = ["subnet", data.score, ...data.costs.map(c => c.name)];
  const rows = line.map(s => element("tr", {tabindex: 0, role: "button", "data-name": s.name,
      class: s === chosen.a ? "a" : s === chosen.b ? "b" : "", onclick: () => choose(s),
      onkeydown: event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(s); } }},
    element("td", {}, s.name), element("td", {class: "number"}, s.score.toPrecision(4)),
    ...data.costs.map(({name}) => element("td", {class: "number"}, s.shown[name]))));
  const focused = document.activeElement?.dataset?.name;
  document.getElementById("front").replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((text, i) => element("th", {class: i ? "number" : ""}, text)))),
    element("tbody", {}, ...rows));
  if (focused) rows.find(row => row.dataset.name === focused)?.focus();
}

function fillDetails() {
  const columns = [["A", chosen.a, "a-mark"], ["B", chosen.b, "b-mark"]].filter(column => column[1]);
  if (data.teacher) columns.push(["teacher", data.teacher, ""]);
  const details = document.getElementById("details");
  if (!chosen.a && !chosen.b) {
    details.replaceChildren(element("p", {class: "soft"}, "Touch a subnet in the plot or in the table to see it here."));
    return;
  }
  const share = (s, name) => data.teacher && s !== data.teacher && data.teacher.costs[name]
    ? ` (${(100 * s.costs[name] / data.teacher.costs[name]).toPrecision(3)} %)` : "";
  const row = (label, cell) => element("tr", {}, element("th", {scope: "row"}, label),
    ...columns.map(([, s]) => element("td", {}, cell(s) ?? "–")));
  const commands = columns.filter(([, s]) => s.command).map(([label, s, mark]) => element("div", {class: "command"},
    element("span", {class: mark}, label), element("code", {}, s.command), copyButton(s.command)));
  details.replaceChildren(
    element("div", {class: "scroll"}, element("table", {id: "compared"},
      element("thead", {}, element("tr", {}, element("td", {}),
        ...columns.map(([label, s, mark]) => element("th", {class: mark}, `${label}: ${s.name}`)))),
      element("tbody", {}, row(data.score, s => s.score?.toPrecision(4)),
        ...data.costs.map(({name}) => row(name, s => s.shown[name] && s.shown[name] + share(s, name))),
        row("shape", s => s.description), row("found by", s => s.found_by?.join(", ")), row("saved in", s => s.folder)))),
    ...commands,
    element("div", {class: "drawings"}, ...columns.map(([label, s, mark]) => {
      const figure = element("figure", {}, element("figcaption", {class: mark}, label));
      figure.append(document.importNode(new DOMParser().parseFromString(s.drawing, "image/svg+xml").documentElement, true));
      return figure;
    })));
}

function copyButton(text) {
  const button = element("button", {class: "copy", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch { // a page from disk may not write to the clipboard: the text is selected instead
      getSelection().selectAllChildren(button.previousSibling);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }}, "Copy");
  return button;
}

function plotHistory() {
  const traces = Object.entries(data.history).map(([name, values]) => ({x: values.map((_, i) => i + 1), y: values, name,
    mode: "lines", type: "scatter"}));
  draw("history", traces, {x: "subnets tried", y: "hypervolume"});
}

function redraw() {
  update();
  plotHistory();
}

fillHeader();
if (data.subnets.length) {
  build();
  chosen.a = bestWithin() || data.subnets[0];
  redraw();
  document.getElementById("plot").on("plotly_click", event => {
    const index = event.points.map(point => point.customdata).find(value => value !== undefined);
    if (index !== undefined) choose(data.subnets[index]);
  });
  dark.addEventListener("change", redraw);
} else {
  document.getElementById("main").append(element("p", {}, "No subnet has a finite score yet."));
}
