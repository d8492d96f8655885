// Browsers start no worker from a file:// page, and the search runs in one.  There, a hidden frame takes its place: the
// same script, the same messages.  (Named so that the offline plugin of the theme knows it and adds none of its own.)
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.documentElement.append(this.frame)
      this.frame.worker = this
      const page = this.frame.contentDocument
      page.open()
      page.write(
        "<!DOCTYPE html><script>" +
          "var postMessage = (data) => frameElement.worker.answer(data);" +
          "var importScripts = (...urls) => Promise.all(urls.map((url) => new Promise((done, failed) =>" +
          "document.head.append(Object.assign(document.createElement('script'), {src: url, onload: done, onerror: failed})))));" +
          "</script><script src='" + new URL(url, document.baseURI) + "' onload='frameElement.worker.start()'></script>"
      )
      page.close()
    }
    start() {
      const waiting = this.waiting
      this.waiting = null
      waiting.forEach((data) => this.postMessage(data))
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
    }
    answer(data) {
      this.dispatchEvent(new MessageEvent("message", { data }))
    }
    terminate() {
      this.frame.remove()
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker
}
