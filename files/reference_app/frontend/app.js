// The whole frontend: no framework, no build step. Text from documents is only ever set as textContent.

const POLL_MILLISECONDS = 1000;
const SURE_MILLISECONDS = 4000;
const PASSAGES = 5;

const $ = (id) => document.getElementById(id);
let pollTimer = 0;
let known = new Map();

/** An error to show to the person: the detail of a problem (RFC 9457), or a sentence of ours. */
class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function call(method, path, options = {}) {
  let response;
  try {
    response = await fetch(`/api${path}`, { method, credentials: "same-origin", ...options });
  } catch {
    throw new ApiError(0, "The server cannot be reached. Check your connection and try again.");
  }
  const type = response.headers.get("content-type") ?? "";
  const body = /[/+]json\b/.test(type) ? await response.json() : null;
  if (!response.ok) {
    throw new ApiError(response.status, body?.detail ?? `The server answered with status ${response.status}.`);
  }
  return body;
}

function showError(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
  $("error").scrollIntoView({ block: "nearest" });
}

function clearError() {
  $("error").hidden = true;
  $("error").textContent = "";
}

/** Run what a button or form started: disabled meanwhile, errors shown, back to the login when the session is over. */
async function run(button, action) {
  clearError();
  button.disabled = true;
  try {
    await action();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401 && !$("workspace").hidden) showLogin();
    showError(error);
  } finally {
    button.disabled = false;
  }
}

function showLogin() {
  clearTimeout(pollTimer);
  known = new Map();
  $("documents").replaceChildren();
  $("results").replaceChildren();
  $("results-status").textContent = "";
  $("question").value = "";
  $("workspace").hidden = true;
  $("account").hidden = true;
  $("login").hidden = false;
  $("username").focus();
}

async function showWorkspace(username) {
  $("whoami").textContent = username;
  $("login").hidden = true;
  $("account").hidden = false;
  $("workspace").hidden = false;
  $("question").focus();
  await refresh();
}

function describe(item) {
  const size = item.size_bytes < 1024 ? `${item.size_bytes} B` : `${(item.size_bytes / 1024).toFixed(1)} KiB`;
  const when = new Date(item.created_at).toLocaleString();
  const passages = item.status === "done" ? ` · ${item.passages} passage${item.passages === 1 ? "" : "s"}` : "";
  return `${size} · ${when}${passages}`;
}

function renderDocument(item) {
  const row = known.get(item.id)?.row ?? $("document-template").content.cloneNode(true).firstElementChild;
  row.dataset.id = item.id;
  row.dataset.status = item.status;
  row.querySelector(".filename").textContent = item.filename;
  row.querySelector(".details").textContent = describe(item);
  row.querySelector(".status").textContent = item.status;
  row.querySelector(".status").className = `status ${item.status}`;
  row.querySelector(".reason").textContent = item.reason ?? "";
  row.querySelector(".reason").hidden = !item.reason;
  const button = row.querySelector(".delete");
  if (!button.classList.contains("sure")) button.setAttribute("aria-label", `Delete ${item.filename}`);
  return row;
}

/** Show the list as it is now, and look again soon while something is unfinished. */
async function refresh() {
  clearTimeout(pollTimer);
  const items = await call("GET", "/documents");
  if ($("workspace").hidden) return;
  const rows = new Map();
  for (const item of items) {
    const before = known.get(item.id);
    rows.set(item.id, { row: renderDocument(item), status: item.status });
    if (before && before.status !== item.status) {
      $("documents-status").textContent = `${item.filename}: ${item.status}`;
    }
  }
  known = rows;
  // Only when rows come, go or move: replacing them all would take the keyboard's focus away.
  const wanted = [...rows.values()].map((entry) => entry.row);
  const shown = [...$("documents").children];
  if (wanted.length !== shown.length || wanted.some((row, index) => row !== shown[index])) {
    $("documents").replaceChildren(...wanted);
  }
  $("no-documents").hidden = items.length > 0;
  if (items.some((item) => item.status === "queued" || item.status === "processing")) {
    pollTimer = setTimeout(poll, POLL_MILLISECONDS);
  }
}

async function poll() {
  try {
    await refresh();
    clearError();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) showLogin();
    else pollTimer = setTimeout(poll, 3 * POLL_MILLISECONDS);
    showError(error);
  }
}

function renderResult(hit) {
  const row = $("result-template").content.cloneNode(true).firstElementChild;
  row.dataset.documentId = hit.document_id;
  row.querySelector(".passage").textContent = hit.passage;
  row.querySelector(".filename").textContent = hit.filename;
  row.querySelector(".distance").textContent = hit.distance.toFixed(3);
  return row;
}

$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  run($("login-button"), async () => {
    const credentials = { username: $("username").value, password: $("password").value };
    const session = await call("POST", "/login", {
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(credentials),
    });
    $("password").value = "";
    await showWorkspace(session.username);
  });
});

$("logout-button").addEventListener("click", () => {
  run($("logout-button"), async () => {
    await call("POST", "/logout");
    showLogin();
  });
});

$("upload-form").addEventListener("submit", (event) => {
  event.preventDefault();
  run($("upload-button"), async () => {
    const form = new FormData();
    form.append("file", $("file").files[0]);
    await call("POST", "/documents", { body: form });
    $("upload-form").reset();
    await refresh();
    $("documents-status").textContent = "Uploaded.";
  });
});

$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  run($("ask-button"), async () => {
    const query = new URLSearchParams({ q: $("question").value, limit: PASSAGES });
    const hits = await call("GET", `/search?${query}`);
    $("results").replaceChildren(...hits.map(renderResult));
    $("results-status").textContent = hits.length
      ? `${hits.length} nearest passage${hits.length === 1 ? "" : "s"}`
      : "Nothing found: no document has been processed yet.";
  });
});

/** Deleting takes a second press within a few seconds: it cannot be undone. */
function askAgain(button, name) {
  button.classList.add("sure");
  button.textContent = "Really delete?";
  button.setAttribute("aria-label", `Really delete ${name}? Press again.`);
  setTimeout(() => {
    button.classList.remove("sure");
    button.textContent = "Delete";
    button.setAttribute("aria-label", `Delete ${name}`);
  }, SURE_MILLISECONDS);
}

$("documents").addEventListener("click", (event) => {
  const button = event.target.closest(".delete");
  if (!button) return;
  const row = button.closest("li");
  const name = row.querySelector(".filename").textContent;
  if (!button.classList.contains("sure")) {
    askAgain(button, name);
    return;
  }
  run(button, async () => {
    await call("DELETE", `/documents/${row.dataset.id}`);
    await refresh();
    $("documents-status").textContent = `${name} deleted.`;
    $("file").focus();
  });
});

try {
  const session = await call("GET", "/session");
  await showWorkspace(session.username);
} catch (error) {
  showLogin();
  if (!(error instanceof ApiError)) throw error;
  if (error.status !== 401) showError(error);
}
