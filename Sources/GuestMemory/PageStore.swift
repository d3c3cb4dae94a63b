// SPDX-License-Identifier: Apache-2.0
// Where pages of guest RAM are that have gone away: in a store that takes its time, as for a host that swaps. While a
// page is absent the store has its only copy; RAM reads as zeros there, so whoever touches it brings it in first.
//
// Two kinds of access have to know. A vCPU looks at the page's flag and goes to the bytes without a lock: it stands still
// when pages go away, and forgets how it reaches them (Translation.evictUsedPages). Everybody else comes through
// `GuestMemory.access`, under the store's lock. Nobody keeps a pointer into RAM.

import Host
import Synchronization

/// The store behind a guest's RAM.
@usableFromInline
final class PageStore: Sendable {
  struct State {
    /// When pages that are being fetched will be there, by page number, on `HostClock.monotonic`.
    var due: [UInt64: UInt64] = [:]
    /// The page at which the search for used pages goes on.
    var hand: UInt64 = 0
  }

  /// Held by whoever brings pages in or takes them away, and during accesses of others than vCPUs; never while waiting.
  let state = Mutex(State())
  /// Held while pages go away, and while none may.
  let evictions = Mutex<Void>(())
  /// A page has the same place as in an image of RAM. In memory, so that nothing that happens to a disk loses a page.
  let file: MemoryFile
  /// How long a page takes to come, in ns.
  let delay: UInt64
  let evicted = Atomic<UInt64>(0)
  let awaited = Atomic<UInt64>(0)
  /// 1 once nobody needs to wait for the time a page takes.
  private let isOver = Futex(0)

  init(byteCount: UInt64, delay: UInt64) throws(HostError) {
    file = try MemoryFile(name: "lguest-store", byteCount: Int(byteCount))
    self.delay = delay
  }

  func sleep(until due: UInt64) {
    while isOver.word.load(ordering: .acquiring) == 0 {
      if isOver.wait(while: 0, until: due) == .timedOut { return }
    }
  }

  func end() { isOver.set(1) }
}

extension GuestMemory {
  /// Whether pages may go away.
  public var hasStore: Bool { store != nil }

  /// Whether a page has gone away; false outside RAM.
  public func isAbsent(_ address: GuestPhysical) -> Bool { flags(at: address).contains(.absent) }

  /// Pages that have gone away so far, and waits for one to come.
  public var storeCounts: (evicted: UInt64, awaited: UInt64) {
    (store?.evicted.load(ordering: .relaxed) ?? 0, store?.awaited.load(ordering: .relaxed) ?? 0)
  }

  // MARK: In

  /// Begins to fetch the page of an address and says when it should be there, as an instant of `HostClock.monotonic` in
  /// ns. It comes with `fetch`, or whenever somebody waits for it. Of a page that is there: now.
  public func beginFetch(_ address: GuestPhysical) -> UInt64 {
    store?.state.withLock { begin(address, &$0) } ?? HostClock.monotonic
  }

  /// Brings the page of an address in, at once; nothing happens if it is there, or is not RAM.
  public func fetch(_ address: GuestPhysical) { store?.state.withLock { bringIn(address, &$0) } }

  /// Brings the page of an address in, when it is due.
  public func wait(for address: GuestPhysical) {
    guard let store, let due = store.state.withLock({ begin(address, &$0) }) else { return }
    store.awaited.add(1, ordering: .relaxed)
    store.sleep(until: due)
    fetch(address)
  }

  /// From now on nobody who waits for a page waits any longer than reading it takes: the machine ends.
  public func endDelays() { store?.end() }

  /// When the page will be there; nil if it is there or is not RAM.
  private func begin(_ address: GuestPhysical, _ state: inout PageStore.State) -> UInt64? {
    guard let store, isAbsent(address) else { return nil }
    let due = state.due[address.page] ?? HostClock.after(nanoseconds: store.delay)
    state.due[address.page] = due
    return due
  }

  private func bringIn(_ address: GuestPhysical, _ state: inout PageStore.State) {
    state.due[address.page] = nil
    guard let store, isAbsent(address) else { return }
    let (place, bytes) = unsafe pages(address.page..<address.page &+ 1)
    // It was written there and is nowhere else: going on without it is worse than ending.
    guard unsafe store.file.read(into: bytes, at: place) else { fatalError("the host has lost a page of guest memory") }
    // What stays if the host does not take it back is written over when the page next goes away.
    _ = store.file.discard(at: place, byteCount: hostPageSize)
    setFlag(.absent, false, at: address)
  }

  /// Runs `body` with all pages there; none goes away meanwhile.
  func withAllPages<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    guard let store else { return try body() }
    return try store.evictions.withLock { _ throws(Failure) in
      store.state.withLock { state in
        forEachPage(.absent) { page in
          bringIn(GuestPhysical(page << 12), &state)
          return true
        }
      }
      return try body()
    }
  }

  /// Runs `body` with the host address of a range of RAM whose pages are all there, and stay.
  @usableFromInline
  func accessStored<Result>(
    _ store: PageStore, _ address: GuestPhysical, _ count: Int, _ body: (UnsafeMutableRawPointer) -> Result
  ) -> Result {
    while true {
      var result: Result?
      var absent: GuestPhysical?
      store.state.withLock { _ in
        absent = firstAbsent(address, count)
        if absent == nil { result = unsafe body(baseAddress + Int(truncatingIfNeeded: address.value)) }
      }
      if let result { return result }
      if let absent { wait(for: absent) }
    }
  }

  /// An address in the first page of a range of RAM that is not there.
  private func firstAbsent(_ address: GuestPhysical, _ count: Int) -> GuestPhysical? {
    var offset = 0
    while offset < count {
      let place = address + UInt64(offset)
      if isAbsent(place) { return place }
      offset += 4096 - Int(place.value & 4095)
    }
    return nil
  }

  // MARK: Out

  /// Takes pages away that user code has accessed since it was last looked, and says how many. Their bytes are in the
  /// store then and not in RAM, which has a hole there. None goes while an image is being written.
  ///
  /// No vCPU may execute guest code or use its tables meanwhile, and each must forget afterwards how it reached them.
  ///
  /// - Parameter limit: Pages that may go at once; the next call goes on behind them.
  public func evictUsedPages(limit: Int = .max) -> Int {
    guard let store else { return 0 }
    let count = store.evictions.withLockIfAvailable { _ in
      store.state.withLock { evict(takeUsedPages(limit, &$0.hand), to: store) }
    }
    store.evicted.add(UInt64(count ?? 0), ordering: .relaxed)
    return count ?? 0
  }

  private func takeUsedPages(_ limit: Int, _ hand: inout UInt64) -> [UInt64] {
    var pages: [UInt64] = []
    for range in [hand..<UInt64.max, 0..<hand] where pages.count < limit {
      forEachPage(.used, in: range) { page in
        let before = unsafe flags(ofPage: page).pointee.bitwiseAnd(
          ~PageFlags.used.rawValue, ordering: .relaxed
        ).oldValue
        if before & PageFlags.absent.rawValue == 0 { pages.append(page) }
        hand = page + 1
        return pages.count < limit
      }
    }
    return pages
  }

  /// Takes pages away, as many neighbours at once as there are.
  private func evict(_ list: [UInt64], to store: PageStore) -> Int {
    var count = 0
    var start = 0
    while start < list.count {
      var end = start + 1
      while end < list.count, list[end] == list[end - 1] + 1 { end += 1 }
      if evict(list[start]..<list[end - 1] + 1, to: store) { count += end - start }
      start = end
    }
    return count
  }

  /// False if the host does not do its part; then they stay.
  private func evict(_ run: Range<UInt64>, to store: PageStore) -> Bool {
    let (place, bytes) = unsafe pages(run)
    guard unsafe store.file.write(UnsafeRawBufferPointer(bytes), at: place), discard(at: place, byteCount: bytes.count)
    else {
      _ = store.file.discard(at: place, byteCount: bytes.count)
      return false
    }
    for page in run { setFlag(.absent, true, at: GuestPhysical(page << 12)) }
    return true
  }

  /// Pages of RAM that follow each other: their place in an image, and their bytes.
  private func pages(_ run: Range<UInt64>) -> (place: Int, bytes: UnsafeMutableRawBufferPointer) {
    let address = run.lowerBound << 12
    let place = address < lowEnd ? address : address - GuestMemory.highStart + lowEnd
    return unsafe (
      Int(place), UnsafeMutableRawBufferPointer(start: baseAddress + Int(address), count: run.count * hostPageSize)
    )
  }
}
