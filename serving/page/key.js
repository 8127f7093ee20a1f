// The key that a server may want. This page alone holds it, and forgets it when it is left.

const NO_KEY = "";
const LOOKING = "Looking for a version …";
let heldKey = NO_KEY;
// It may not do all that is asked here, though some of it.
let refusedKey = null;
// It has been good.
let goodKey = null;

const isLocked = (error) => error instanceof Refusal && [401, 403].includes(error.status);
// Where many wrong keys come from here, who has none is told only that.
const wantsKey = (error, sent) => isLocked(error) || (!sent && error instanceof Refusal && error.status === BY_REQUESTS);
// Not as `Authorization`, which a proxy may have asked this browser for.
const withKey = (options) => (heldKey ? { ...options, headers: { ...options.headers, "x-api-key": heldKey } } : options);

// Read aloud when it changes.
function tell(id, words) {
  if (find(id).textContent !== words) find(id).textContent = words;
  show(find(id), words);
}

// Asks for a key, and says what is wrong with the one that was sent, if one was.
function wantKey(refusal, sent) {
  // A late answer to another key tells nothing about this one.
  if (sent !== heldKey) return;
  // A replica may not have heard of a key that another one knows: a 401 may be over soon.
  refusedKey = refusal.status === 403 && sent ? sent : null;
  tell("key-problem", sent ? sentence(refusal.message) : "");
  tell("key-unsafe", window.isSecureContext ? "" : "This connection is not encrypted: who can listen in, sees the key.");
  show(find("key-asked"), true);
  // A link takes no key along.
  show(find("documents"), false);
  if (!facts) find("served").textContent = "A key is needed.";
}

// The key that was sent was good.
function unlocked(sent) {
  if (sent !== heldKey) return;
  goodKey = sent;
  if (find("key-asked").hidden || sent === refusedKey) return;
  const isFocused = find("key-asked").contains(document.activeElement);
  show(find("key-asked"), false);
  find("key").value = "";
  if (!facts) find("served").textContent = LOOKING;
  if (isFocused) find(kind()).focus();
}

function forget() {
  heldKey = NO_KEY;
  find("key").value = "";
}

// Calls `then` when a key was given.
function takeKeys(then) {
  find("key-asked").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = find("key").value.trim();
    // What no header may hold would fail as if nobody were there.
    const isKey = /^[\x21-\x7e]+$/.test(given);
    tell("key-problem", isKey ? "" : "That is no key: letters, digits, _ and - are all that one has.");
    if (!isKey) return;
    heldKey = given;
    refusedKey = null;
    then();
  });
  // Browsers keep whole pages for who comes back.
  window.addEventListener("pagehide", forget);
}
