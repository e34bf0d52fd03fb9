"use strict";
// Writes times in the reader's zone, and keeps an open page as it is in the database. Every page works without it.
(() => {
  const exact = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "medium"});
  const local = (root) => {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (!isNaN(at)) time.textContent = exact.format(at);
    }
  };
  local(document);

  const link = (text) => [...document.querySelectorAll("nav a")].find((a) => a.textContent === text);
  const where = {o: "Overview", w: "Workflows", a: "Approvals", d: "Dead jobs", m: "Messages"};
  let going = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (going && where[event.key]) link(where[event.key])?.click();
    going = event.key === "g";
    if (event.key === "/") {
      const field = document.querySelector("[role=search] input:not([type=hidden])");
      if (field) { field.focus(); event.preventDefault(); }
    }
  });

  // What is done in batches goes on by itself, until the page is left.
  const next = document.querySelector("form[data-go-on]");
  if (next) setTimeout(() => next.requestSubmit(), 500);

  const address = document.body.dataset.events;
  if (!address || !window.EventSource || !document.querySelector("[data-panel]")) return;
  const follows = new Set(["opened", "database", ...document.body.dataset.follows.split(" ")]);

  // A panel in which somebody types, selects or stands stays as it is.
  const busy = (panel) => {
    const selected = document.getSelection();
    return panel.contains(document.activeElement)
      || (selected && !selected.isCollapsed && panel.contains(selected.anchorNode))
      || [...panel.querySelectorAll("input, textarea")].some((field) => field.value !== field.defaultValue);
  };
  const stale = document.getElementById("stale");
  const say = (trouble) => {
    const text = trouble ? `This page is not up to date: ${trouble}` : "";
    if (stale.textContent !== text) stale.textContent = text;
    stale.hidden = !text;
  };
  let timer, refreshing = false, again = false;
  const held = new Set();  // panels that are older than the page, because somebody is busy there
  const refresh = async () => {
    if (refreshing) { again = true; return; }
    refreshing = true;
    try {
      const answer = await fetch(location.href, {headers: {accept: "text/html", "x-outbox-follows": "1"}});
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!answer.ok) {
        say(fresh.querySelector(".notice.bad")?.textContent.trim() || `the answer is ${answer.status}`);
        clearTimeout(timer);
        timer = setTimeout(refresh, 5000);
        return;
      }
      say("");
      local(fresh);
      held.clear();
      for (const panel of document.querySelectorAll("[data-panel][id]")) {
        const next = fresh.getElementById(panel.id);
        if (!next) continue;
        if (busy(panel)) { held.add(panel); continue; }
        const open = new Set([...panel.querySelectorAll("details[open] > summary")].map((each) => each.textContent));
        for (const each of next.querySelectorAll("details > summary")) if (open.has(each.textContent)) each.parentNode.open = true;
        if (next.innerHTML !== panel.innerHTML) panel.replaceChildren(...next.childNodes);
      }
    } catch { say("it can't be reached"); } finally {
      refreshing = false;
      if (again) { again = false; soon(); }
    }
  };
  const soon = () => { clearTimeout(timer); timer = setTimeout(refresh, 250); };

  const button = document.createElement("button");
  button.type = "button";
  let paused = sessionStorage.getItem("outbox-paused") === "1", source, retry;
  const follow = () => {
    clearTimeout(retry);
    source?.close();
    source = undefined;
    button.textContent = paused ? "Follow" : "Pause";
    button.setAttribute("aria-label", paused ? "Follow what happens" : "Pause: keep this page as it is");
    if (paused || document.hidden) return;
    source = new EventSource(address);
    source.addEventListener("changed", (event) => {
      if (event.data.split(",").some((name) => follows.has(name))) soon();
    });
    source.addEventListener("error", () => {
      if (document.hidden || !source) return;
      const refused = source.readyState === 2;  // the browser doesn't try again then
      say(refused ? "it can't follow what happens" : "it can't be reached");
      if (refused) retry = setTimeout(follow, 5000);
    });
  };
  const freed = () => { if (!paused && [...held].some((panel) => !busy(panel))) soon(); };
  document.addEventListener("focusout", freed);
  document.addEventListener("selectionchange", freed);
  button.addEventListener("click", () => {
    paused = !paused;
    sessionStorage.setItem("outbox-paused", paused ? "1" : "0");
    follow();
    if (!paused) soon();
  });
  document.addEventListener("visibilitychange", () => { follow(); if (!document.hidden && !paused) soon(); });
  addEventListener("pagehide", () => source?.close());
  document.querySelector(".who").after(button);
  follow();
})();
