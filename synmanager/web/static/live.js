// Keeps a page up to date: takes what the server says is new, and lets clocks go on in between.
"use strict";

(() => {
  const body = document.body;
  const pulse = document.getElementById("pulse");
  let ahead = Date.now() / 1000 - Number(body.dataset.now); // of the server's clock

  const made = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html.trim();
    return template.content.firstElementChild;
  };

  // Whoever is at a link of an old element is at the same link of the new one.
  const replace = (old, fresh) => {
    const active = document.activeElement;
    const href = old.contains(active) ? active.getAttribute("href") : null;
    old.replaceWith(fresh);
    if (href !== null) {
      const same = [...fresh.querySelectorAll("a[href]")].find((a) => a.getAttribute("href") === href);
      if (same) same.focus({ preventScroll: true });
    }
  };

  const take = (news) => {
    ahead = Date.now() / 1000 - news.now;
    const fresh = new Map(Object.entries(news.pieces || {}).map(([id, html]) => [id, made(html)]));
    for (const [id, element] of fresh) {
      const old = document.getElementById(id);
      if (old && element) replace(old, element);
    }
    for (const [id, order] of Object.entries(news.orders || {})) {
      const list = document.getElementById(id);
      if (!list) continue;
      const wanted = new Set(order);
      for (const child of [...list.children]) if (!wanted.has(child.id)) child.remove();
      let next = list.firstElementChild;
      for (const key of order) {
        const element = document.getElementById(key) || fresh.get(key);
        if (!element) continue;
        if (element === next) next = next.nextElementSibling;
        else list.insertBefore(element, next);
      }
    }
    tick();
  };

  const words = (seconds) => {
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
    }
    return `${Math.round(Math.max(0, seconds))} s`;
  };

  const tick = () => {
    const now = Date.now() / 1000 - ahead;
    for (const clock of document.querySelectorAll("time[data-since], time[data-until]")) {
      const { since, until } = clock.dataset;
      const text = words(since ? now - Number(since) : Number(until) - now);
      if (clock.textContent !== text) clock.textContent = text;
    }
  };

  tick();
  setInterval(tick, 1000);
  if (!body.dataset.live) return;

  let source = null;
  const begin = () => {
    source = new EventSource(body.dataset.live);
    source.onopen = () => { pulse.textContent = "live"; pulse.className = "is-live"; };
    source.onmessage = (event) => take(JSON.parse(event.data));
    source.onerror = () => {
      pulse.textContent = "connection lost; trying again";
      pulse.className = "is-lost";
      if (source.readyState === EventSource.CLOSED) setTimeout(begin, 5000);
    };
  };
  const end = () => { if (source) source.close(); source = null; };
  // A page that nobody sees asks for nothing.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) end();
    else if (!source) begin();
  });
  addEventListener("pagehide", end);
  addEventListener("pageshow", (event) => { if (event.persisted && !source) begin(); });
  begin();
})();
