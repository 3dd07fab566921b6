(function () {
  "use strict";
  var main = document.querySelector("main");
  var lost = document.getElementById("lost");
  var version = main.getAttribute("data-version");
  async function ask() {
    try {
      var answer = await fetch("live.json?seen=" + encodeURIComponent(version), { cache: "no-store" });
      if (!answer.ok) throw new Error("status " + answer.status);
      var news = await answer.json();
      lost.hidden = true;
      if (news.html !== undefined) {
        var open = main.querySelector("details[open]") !== null;
        main.innerHTML = news.html;
        var details = main.querySelector("details");
        if (details) details.open = open;
        version = news.version;
        document.title = news.title;
      }
      if (news.ended) return;
    } catch (error) {
      lost.hidden = false;
    }
    setTimeout(ask, 2000);
  }
  setTimeout(ask, 2000);
})();
