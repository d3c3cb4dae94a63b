// SPDX-License-Identifier: Apache-2.0
// A host thread that runs vCPUs, as they see it: what of the host is the thread's and not theirs.

import Engine
import Host
import Paravirt

/// What a thread has for whatever vCPU it runs. Belongs to that thread.
final class VCPUThread {
  /// How long the host lets the thread wait; nil: the host does not say.
  let delay: RunQueueDelay?
  /// What the processor reads while a ring-1 guest runs here.
  let page: LguestPage

  /// - Throws: `HostError` if the host gives no memory.
  init(_ delay: RunQueueDelay? = nil, policy: LguestPage.Policy = .changed) throws(HostError) {
    self.delay = delay
    page = LguestPage(try MachinePage(), policy: policy)
  }
}
