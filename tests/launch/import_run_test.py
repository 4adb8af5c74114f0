"""A model leaves the store as torch files and comes back as an import."""

import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import eval, types, zoo
from configs.defenses import ep, exact_purification, ft
from configs.existence import bec
from configs.reactivation import white_box
from launch import cli, defend, existence, import_run, reactivate, world
from tests import toy as toy_world
from tests.launch import toy
from tests.zoo import run_folders
from tests.zoo import torch_writer as writer

Request = import_run.Request


@functools.cache
def _stored() -> tuple[zoo.triggered.Stored, zoo.triggered.Stored]:
  """The triggered images of the toy's victim, training and test."""
  victim, dataset = toy_world.victim(), toy_world.dataset()
  attack = toy_world.attack()
  index = np.flatnonzero(np.asarray(victim.state.kind))
  feed = toy_world.poisoned_train()
  train = zoo.triggered.Stored(
    index.astype(np.int32),
    np.asarray(feed.images[0])[index],
    np.asarray(feed.labels[0])[index],
    dataset.train.labels[index],
  )
  labels = dataset.test.labels
  target = np.asarray(attack.relabel(labels))
  index = np.flatnonzero(target != labels)
  images = attack.stamp(
    victim.state,
    dataset.test.images[index].astype(np.float32) / 255,
    world.stamp_key(),
    index,
  )
  test = zoo.triggered.Stored(
    index.astype(np.int32),
    np.rint(np.asarray(images) * 255).astype(np.uint8),
    target[index],
    labels[index],
  )
  return train, test


def _weights(model: types.ModelState) -> dict:
  return zoo.torch_states.to_torch(model, toy_world.classifier())


def _folder(name: str, layout: str, test=None, **options):
  """A run folder of the toy's victim."""
  train, whole = _stored()
  return run_folders.write(
    toy.folder(name),
    layout,
    _weights(toy_world.victim().model),
    train,
    whole if test is None else test,
    num_train=len(toy_world.dataset().train.labels),
    num_test=len(toy_world.dataset().test.labels),
    **options,
  )


_ARGUMENTS = {'attack': 'badnet', 'pratio': 0.1}
_CONTEXT = cli.Context(toy.folder('imports'))


def _run(request, context=_CONTEXT):
  with toy.compiled_once():
    return toy.quiet(import_run.main, None, context, request)


@functools.cache
def _attacked() -> zoo.Artefact:
  folder = _folder('source', 'disk', arguments=_ARGUMENTS)
  return _run(Request(run_dir=folder))[0]


@functools.cache
def _clean() -> zoo.Artefact:
  path = toy.folder('clean_model.pth')
  writer.save(path, writer.tensors(_weights(toy_world.clean_model())))
  request = Request(weights=path, dataset='synthetic', arch='tiny')
  return _run(request)[0]


@functools.cache
def _defended() -> zoo.Artefact:
  config = toy.set_all(ft.get_config('quick'), toy.DEFENSE)
  with toy.compiled_once():
    made, _ = toy.quiet(defend.main, config, _CONTEXT, _attacked().name)
  return made[0]


class ImportTest(parameterized.TestCase):
  def test_rates_are_those_of_the_model_that_left(self):
    victim, attack = toy_world.victim(), toy_world.attack()
    wanted = eval.evaluate(
      toy_world.classifier(),
      victim.model,
      *toy_world.dataset().test,
      stamp=lambda x, key, index: attack.stamp(victim.state, x, key, index),
      relabel=attack.relabel,
      key=world.stamp_key(),
    )
    self.assertGreater(wanted['asr'], 0.9)
    for name, value in wanted.items():
      self.assertEqual(_attacked().card.metrics[name], value)

  def test_card_and_record(self):
    card = _attacked().card
    self.assertEqual(
      (card.kind, card.method, card.dataset, card.arch, card.arch_options),
      ('attacked', 'badnets', 'synthetic', 'tiny', {}),
    )
    records = zoo.records.read(_CONTEXT.records)
    (record,) = [r for r in records if r['run_id'] == card.run_id]
    num = len(_stored()[0].index)
    for name, wanted in {
      'stage': 'attack',
      'attack': 'badnets',
      'label_mode': 'all2one',
      'target_label': 0,
      'poison_ratio': 0.1,
      'cover_ratio': None,
      'num_poison': num,
      'c_acc': card.metrics['c_acc'],
      'flags': ['imported'],
    }.items():
      self.assertEqual(record[name], wanted, name)

  def test_images_lie_beside_the_model(self):
    arrays = zoo.load_arrays(_attacked())
    for split, stored in zip(('train', 'test'), _stored(), strict=True):
      for name, value in stored._asdict().items():
        np.testing.assert_array_equal(arrays[f'{split}/{name}'], value)
    kind = np.asarray(toy_world.victim().state.kind)
    np.testing.assert_array_equal(arrays['kind'], kind)

  def test_victims_are_rebuilt_from_the_store(self):
    here = world.of_card(_attacked().card, _CONTEXT)
    victim = world.victim(_attacked(), here)
    jax.tree.map(
      np.testing.assert_array_equal, victim.model, toy_world.victim().model
    )
    _, stamped, labels, targets, index = world.triggered_test(here, victim)
    stored = _stored()[1]
    for found, wanted in zip(
      (index, stamped, targets, labels), stored, strict=True
    ):
      np.testing.assert_array_equal(found, wanted)
    images, labels = world.poisoned_train(here, victim)
    feed = toy_world.poisoned_train()
    np.testing.assert_array_equal(images, feed.images[0])
    np.testing.assert_array_equal(labels, feed.labels[0])

  def test_the_same_again_is_not_stored_again(self):
    # Whatever layout it comes in.
    folder = _folder('memory', 'memory', arguments=_ARGUMENTS)
    written = (_attacked().path / 'DONE').stat().st_mtime_ns
    again, out = _run(Request(run_dir=folder))
    self.assertIn('imported before', out)
    self.assertEqual(again.name, _attacked().name)
    self.assertEqual((again.path / 'DONE').stat().st_mtime_ns, written)

  def test_names_that_do_not_fit_are_reported(self):
    arrays = _weights(toy_world.clean_model()).values()
    path = toy.folder('renamed.pth')
    writer.save(
      path, writer.tensors({f'w{i}': v for i, v in enumerate(arrays)})
    )
    request = Request(weights=path, dataset='synthetic', arch='tiny')
    context = cli.Context(toy.folder('renamed'))
    artefact, out = _run(request, context)
    self.assertIn('matched by position', out)
    self.assertTrue(zoo.load_metrics(artefact)['by_position'])
    c_acc = _clean().card.metrics['c_acc']
    self.assertEqual(artefact.card.metrics['c_acc'], c_acc)

  def test_clean_models(self):
    card = _clean().card
    self.assertEqual(
      (card.kind, card.stage, card.attack), ('clean', 'clean', {})
    )
    self.assertGreater(card.metrics['c_acc'], 0.9)
    self.assertIsNone(card.metrics['asr'])


class OnwardTest(absltest.TestCase):
  def test_defenses_start_from_it(self):
    card = _defended().card
    self.assertEqual(card.parents, (_attacked().card.run_id,))
    self.assertTrue(card.metrics['finite'])
    self.assertIsNotNone(card.metrics['asr'])

  def test_defenses_that_read_the_poisoned_training_set(self):
    config = ep.get_config('quick')
    with toy.compiled_once():
      made, _ = toy.quiet(defend.main, config, _CONTEXT, _attacked().name)
    self.assertTrue(made[0].card.metrics['finite'])

  def test_existence_is_measured(self):
    _clean()
    config = bec.get_config('quick')
    with toy.compiled_once():
      made, _ = toy.quiet(existence.main, config, _CONTEXT, _defended().name)
    self.assertIsNotNone(made[0].card.metrics['bec'])

  def test_methods_that_know_the_trigger_are_recorded_as_unsupported(self):
    config = exact_purification.get_config('quick')
    with self.assertRaisesRegex(ValueError, 'unsupported.*triggered images'):
      toy.quiet(defend.main, config, _CONTEXT, _attacked().name)
    records = zoo.records.read(_CONTEXT.records)
    statuses = [r['status'] for r in records if r['defense'] == config.name]
    self.assertEqual(statuses, ['unsupported'])

  def test_reactivation_says_what_is_missing(self):
    _clean()
    config = white_box.get_config('quick')
    with self.assertRaisesRegex(
      ValueError, 'no trigger for others.*launch.attack'
    ):
      toy.quiet(reactivate.main, config, _CONTEXT, _defended().name)


class RefusalTest(absltest.TestCase):
  def assert_refused(self, pattern, request):
    with self.assertRaisesRegex(ValueError, pattern):
      toy.quiet(import_run.main, None, _CONTEXT, request)

  def test_nothing_to_import(self):
    self.assert_refused('Give one of --run_dir.*--weights', Request())
    self.assert_refused('Give one', Request(run_dir='a', weights='b'))

  def test_weights_need_a_world(self):
    self.assert_refused('--dataset=cifar10 --arch', Request(weights='x.pth'))

  def test_incomplete_test_sets(self):
    part = zoo.triggered.Stored(*(x[3:] for x in _stored()[1]))
    folder = _folder('part', 'disk', part, arguments=_ARGUMENTS)
    self.assert_refused('3 of 384 test images', Request(run_dir=folder))

  def test_other_classes(self):
    weights = _weights(toy_world.clean_model())
    weights['head.bias'] = np.zeros(10, np.float32)
    path = writer.save(toy.folder('ten.pth'), writer.tensors(weights))
    request = Request(weights=path, dataset='synthetic', arch='tiny')
    self.assert_refused('`head.bias` is .10,. in the file', request)


if __name__ == '__main__':
  absltest.main()
