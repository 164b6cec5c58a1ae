// A Worker for pages opened as files, where browsers start none: the script runs in a hidden frame and is spoken to by messages.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      this.inner = this.frame.contentWindow;
      this.inner.document.open();
      this.inner.document.write(
        `<script>
          var postMessage = function (data) { parent.postMessage({ worker: true, data: data }, "*") }
          var importScripts = function () {
            return Array.prototype.reduce.call(arguments, function (before, url) {
              return before.then(function () {
                return new Promise(function (resolve) {
                  var script = document.createElement("script")
                  script.src = url
                  script.addEventListener("load", resolve)
                  document.body.appendChild(script)
                })
              })
            }, Promise.resolve())
          }
        </` + `script><body><script src="${new URL(url, location)}"></` + `script>`,
      );
      this.inner.document.close();
      window.addEventListener("message", (event) => {
        if (event.source !== this.inner || !event.data.worker) return;
        const message = new MessageEvent("message", { data: event.data.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      });
      this.started = new Promise((resolve) => this.frame.addEventListener("load", resolve));
    }
    postMessage(data) {
      this.started.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
