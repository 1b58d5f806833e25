() => {
  const known = KNOWN, rtl = RTL;
  const show = async (wanted) => {
    const tag = wanted.split("-")[0];
    document.documentElement.dir = rtl.includes(tag) ? "rtl" : "ltr";
    const taiwan = /^zh-(Hant|TW|HK|MO)/.test(wanted);
    const own = { zh: taiwan ? "zh-TW" : "zh-CN", pt: wanted === "pt-BR" ? wanted : "pt" }[tag] ?? tag;
    const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
    const core = loaded.find((name) => /\/core-[\w-]+\.js$/.test(name));
    if (core) (await import(core)).changeLocale(own);
    document.documentElement.lang = own;
  };
  window.altdiffusionLanguage = (tag) => {
    document.cookie = `COOKIE=${tag}; path=/; max-age=31536000; SameSite=Lax`;
    return show(tag);
  };
  const chosen = document.cookie.match(/(?:^|; )COOKIE=([a-z]+)/)?.[1];
  const asked = [chosen, ...navigator.languages].filter((tag) => known.includes(tag?.split("-")[0]));
  return show(asked[0] ?? "en");
}
