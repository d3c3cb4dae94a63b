// SPDX-License-Identifier: Apache-2.0
// Stand-in for the kernel loader until it lands: the names the command line accepts. Delete with its arrival.

public enum EntryPoint: String, Sendable, CaseIterable { case linux64, linux32, pvh, multiboot }
