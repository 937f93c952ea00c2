"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plots = [...document.querySelectorAll("[data-figure]")];
  const touch = matchMedia("(pointer: coarse)").matches;

  // The figures come in their light colours: only ink and hover boxes follow the page.
  const theme = () => ({
    "font.color": style("--ink"),
    "hoverlabel.bgcolor": style("--card"),
    "hoverlabel.bordercolor": style("--line"),
    "hoverlabel.font.color": style("--ink"),
  });
  const restyle = (more) => plots.map((plot) => Plotly.relayout(plot, { ...theme(), ...more }));

  if (plots.length > 0) {
    const figures = read("figures");
    const config = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", modeBarButtons: [["toImage"]] };
    const drawn = plots.map((plot) => {
      plot.replaceChildren();
      const { data, layout } = figures[plot.dataset.figure];
      // A finger that drags wants to scroll the page.
      layout.dragmode = touch ? false : "zoom";
      return Plotly.newPlot(plot, data, layout, config);
    });
    Promise.all(drawn)
      .then(() => Promise.all(restyle({})))
      .then(() => document.documentElement.setAttribute("data-drawn", String(plots.length)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => restyle({}));
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
    restyle({ width: 680, "font.color": "#000000" });
  });
  addEventListener("afterprint", () => restyle({ width: null, autosize: true }));

  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Save results.json";
  button.addEventListener("click", () => {
    const text = JSON.stringify(read("results"), null, 2) + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "results.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  document.getElementById("download").replaceChildren(button);
})();
