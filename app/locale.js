() => {
  const known = KNOWN, rtl = RTL;
  let tag = "en";
  // Tabs that nobody has opened keep the names of the language before: gradio asks for those only once.
  const texts = window.gradio_config?.i18n_translations ?? {};
  const tabs = Object.keys(texts.en ?? {}).filter((key) => key.startsWith("app_tab_"));
  const rename = () => {
    for (const button of document.querySelectorAll(".tab-wrapper button")) {
      const name = [...button.childNodes].find((node) => node.nodeType === 3 && node.data.trim());
      const key = tabs.find((key) => known.some((one) => texts[one][key] === name?.data.trim()));
      if (key && name.data !== texts[tag][key]) name.data = texts[tag][key];
    }
  };
  const bar = document.querySelector(".tab-wrapper");
  if (bar) new MutationObserver(rename).observe(bar, { childList: true, subtree: true });
  const show = async (wanted) => {
    tag = wanted.split("-")[0];
    document.documentElement.dir = rtl.includes(tag) ? "rtl" : "ltr";
    const taiwan = /^zh-(Hant|TW|HK|MO)/.test(wanted);
    const own = { zh: taiwan ? "zh-TW" : "zh-CN", pt: wanted === "pt-BR" ? wanted : "pt" }[tag] ?? tag;
    const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
    const core = loaded.find((name) => /\/core-[\w-]+\.js$/.test(name));
    if (core) (await import(core)).changeLocale(own);
    document.documentElement.lang = own;
    setTimeout(rename);  // after gradio's own
  };
  window.altdiffusionLanguage = (tag) => {
    document.cookie = `COOKIE=${tag}; path=/; max-age=31536000; SameSite=Lax`;
    return show(tag);
  };
  const chosen = document.cookie.match(/(?:^|; )COOKIE=([a-z]+)/)?.[1];
  const asked = [chosen, ...navigator.languages].filter((tag) => known.includes(tag?.split("-")[0]));
  return show(asked[0] ?? "en");
}
