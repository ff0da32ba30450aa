// Keeps the page's own files so that it works without a network once it has been opened. Nothing else is ever fetched.
const SPACE = "space.json";
let opening;

async function opened() {
  const space = await (await fetch(SPACE, { cache: "no-cache" })).json();
  const cache = await caches.open(space.version);
  return { space, cache };
}

async function fill() {
  const { space, cache } = await opened();
  const have = new Set((await cache.keys()).map((request) => request.url));
  const wanted = ["./", SPACE, ...space.files].map((name) => new URL(name, self.registration.scope).href);
  for (const url of wanted.filter((url) => !have.has(url))) {
    const answer = await fetch(url, { cache: "no-cache" });
    if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
    await cache.put(url, answer);
  }
  for (const name of await caches.keys()) if (name !== space.version) await caches.delete(name);
}

self.addEventListener("install", (event) => {
  opening = fill();
  event.waitUntil(opening.then(() => self.skipWaiting()));
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

// What lies in the cache is what was measured; a newer version comes whole, with the next visit.
self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || new URL(event.request.url).origin !== self.location.origin) return;
  event.respondWith(
    caches.match(event.request, { ignoreSearch: true }).then((kept) => kept ?? fetch(event.request)),
  );
});
