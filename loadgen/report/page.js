// A link to a trial opens the lists that hold it.
function show() {
  if (!location.hash.startsWith("#trial-")) return;
  const row = document.querySelector(location.hash);
  for (let each = row?.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
  row?.scrollIntoView({ block: "center" });
}
addEventListener("hashchange", show);
show();

// In a chart the nearest value is told where the pointer is, and either broker can be left out.
const REACH = 28, NAMES = { rabbitmq: "RabbitMQ", kafka: "Kafka" };
const tip = document.body.appendChild(document.createElement("div"));
tip.className = "tip";
tip.hidden = true;
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg");
  const marks = JSON.parse(figure.querySelector("script")?.textContent ?? "[]");
  const here = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "circle"));
  here.setAttribute("class", "here");
  here.setAttribute("r", 0);
  const hide = () => { tip.hidden = true; here.setAttribute("r", 0); };
  svg.addEventListener("pointerleave", hide);
  addEventListener("scroll", hide);
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let nearest = null, least = REACH * REACH;
    for (const mark of marks) {
      const far = (mark[0] - at.x) ** 2 + (mark[1] - at.y) ** 2;
      if (far < least && !figure.classList.contains("without-" + mark[3])) [nearest, least] = [mark, far];
    }
    if (!nearest) return hide();
    here.setAttribute("cx", nearest[0]);
    here.setAttribute("cy", nearest[1]);
    here.setAttribute("r", 5);
    tip.textContent = nearest[2];
    tip.hidden = false;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
  });
  const brokers = Object.keys(NAMES).filter((name) => svg.querySelector(`[style*="var(--${name})"]`));
  if (brokers.length < 2) continue;
  const group = document.createElement("div");
  group.className = "series";
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "brokers shown in this chart");
  for (const name of brokers) {
    const button = group.appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = NAMES[name];
    button.setAttribute("aria-pressed", true);
    button.addEventListener("click", () => {
      const isOut = figure.classList.toggle("without-" + name);
      button.setAttribute("aria-pressed", !isOut);
      hide();
    });
  }
  figure.prepend(group);
}
