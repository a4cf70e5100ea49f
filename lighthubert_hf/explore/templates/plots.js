// What both pages share: the data, elements, and plots in the page's own colours.
let data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

// Text goes in as text: nothing out of the data is read as HTML.
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null));
  return node;
}

// Plotly reads a little HTML in its labels.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function draw(id, traces, {x, y, logX = false, logY = false, ...rest}) {
  const axis = (title, log) => ({title: {text: plain(title)}, type: log ? "log" : "linear", gridcolor: colour("grid"),
    zeroline: false, linecolor: colour("line"), automargin: true});
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: colour("ink"), size: 12},
    margin: {l: 10, r: 10, t: 10, b: 10}, hovermode: "closest", uirevision: "keep", dragmode: "pan",
    modebar: {bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent")},
    legend: {orientation: "h", y: 1.02, yanchor: "bottom"}, xaxis: axis(x, logX), yaxis: axis(y, logY),
    hoverlabel: {bgcolor: colour("card"), bordercolor: colour("line"), font: {color: colour("ink")}}, ...rest,
  };
  return Plotly.react(id, traces, layout, {displaylogo: false, responsive: true, scrollZoom: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]});
}

function fillHeader() {
  document.getElementById("facts").textContent = data.facts.join(" · ");
  const warnings = document.getElementById("warnings");
  warnings.textContent = (data.warnings || []).join("\n");
  warnings.hidden = !warnings.textContent;
}
