import { defineConfig } from 'vitest/config';

/** Three projects: `unit` needs Node alone, `interop` needs peers and skips what is absent, `long` asks the
 * host's CPU more than interop does and takes minutes. */
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/interop/**'],
          testTimeout: 20_000,
        },
      },
      {
        test: {
          name: 'interop',
          include: ['test/interop/**/*.test.ts'],
          testTimeout: 300_000,
          hookTimeout: 300_000,
          fileParallelism: false,
        },
      },
      {
        test: {
          name: 'long',
          include: ['test/interop/oracle.test.ts', 'test/kernel/kvm/secrecy.test.ts'],
          env: {
            SOFTCVM_SNIPPETS: process.env['SOFTCVM_SNIPPETS'] ?? '8000',
            HISTORIES: process.env['HISTORIES'] ?? '10000',
          },
          testTimeout: 1_800_000,
        },
      },
    ],
  },
});
